"""The Python interface: `metabin_jax.Encoder`."""

import importlib.metadata

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_run import draw_folder

import metabin_jax
from metabin_jax.retrieval.encoder import embed_images
from metabin_jax.retrieval.listing import list_images
from metabin_jax.runtime.errors import UserError
from metabin_jax.training import trained

pytestmark = pytest.mark.usefixtures("quick_net")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = draw_folder(tmp_path_factory.mktemp("pictures"), domains=("east",))
    return sorted(root.rglob("*.png"))


@pytest.fixture
def encoder(straight):
    return metabin_jax.Encoder.load(straight[0])


def opened(path, mode="RGB", size=None):
    with Image.open(path) as image:
        return image.convert(mode).resize(size or image.size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_features_are_those_of_the_command(encoder, straight, paths, count):
    expected, _ = embed_images(trained.load(straight[0]), list_images(paths[0].parent))
    found = encoder(paths[:count])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.feature[:count], atol=1e-6)
    assert count == 1 or np.abs(found - expected.feature[:count][::-1]).max() > 0.01


def test_paths_pictures_and_arrays_are_the_same_and_may_be_mixed(encoder, paths):
    expected = encoder(paths[:3])
    pixels = [np.asarray(opened(path)) for path in paths[:3]]
    for pictures in (
        [str(path) for path in paths[:3]],
        [opened(path) for path in paths[:3]],
        pixels,
        np.stack(pixels),
        (pixels[0], opened(paths[1], "RGBA"), paths[2]),
    ):
        np.testing.assert_array_equal(encoder(pictures), expected)
    for single in (paths[0], str(paths[0]), opened(paths[0]), pixels[0]):
        np.testing.assert_allclose(encoder(single), expected[:1], atol=1e-6)


def test_any_size_is_resized_as_in_training(encoder, paths):
    larger = opened(paths[0], size=(90, 47))
    by_hand = larger.resize(encoder.size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(encoder([larger, np.asarray(larger)]), encoder([by_hand, by_hand]))
    nearest = larger.resize(encoder.size[::-1], Image.Resampling.NEAREST)
    assert np.abs(encoder(larger) - encoder(nearest)).max() > 1e-4


def test_search_is_that_of_numpy(encoder, paths):
    gallery_GD = encoder(paths)
    row_QK, similarity_QK = encoder.search(paths[:3], gallery_GD, k=4)
    cosine_QG = gallery_GD[:3] @ gallery_GD.T
    np.testing.assert_array_equal(row_QK, np.argsort(-cosine_QG, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(similarity_QK, -np.sort(-cosine_QG, axis=1)[:, :4], atol=1e-6)
    assert row_QK[:, 0].tolist() == [0, 1, 2]
    assert encoder.search(gallery_GD[:1], paths[:2], k=10)[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("/no/such.jpg", "/no/such.jpg cannot be read"),
        (np.zeros((4, 4, 3)), "picture 1 cannot be read: .*uint8 .height, width, 3., not float64 .4, 4, 3."),
        (np.zeros((4, 4, 1), np.uint8), r"picture 1 cannot be read: .*\[4, 4, 1\]"),
        (np.zeros((0, 4, 3), np.uint8), r"picture 1 cannot be read: .*\[0, 4, 3\]"),
    ],
)
def test_what_cannot_be_read_is_named(encoder, paths, picture, words):
    with pytest.raises(UserError, match=words):
        encoder([paths[0], picture])


def test_an_array_of_paths_is_many_pictures(encoder, paths):
    np.testing.assert_array_equal(encoder(np.array([str(path) for path in paths[:4]])), encoder(paths[:4]))


def test_arrays_of_jax_are_pictures_and_features(encoder, paths):
    image_HWC = jnp.asarray(opened(paths[0]))
    np.testing.assert_array_equal(encoder([image_HWC]), encoder(paths[0]))
    np.testing.assert_array_equal(encoder(image_HWC), encoder(paths[0]))
    gallery_ND = encoder(paths[:4])
    found, expected = encoder.search(paths[0], jnp.asarray(gallery_ND)), encoder.search(paths[0], gallery_ND)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda encoder: encoder([]), "there are no pictures to embed"),
        (lambda encoder: encoder(None), "pictures are paths, PIL images or arrays, not NoneType"),
        (lambda encoder: encoder(np.zeros((4, 5), np.uint8)), r"picture 0 .*: an array must be RGB, .*\[4, 5\]"),
        (lambda encoder: encoder.search(np.ones((1, 3), "f"), np.ones((2, 4), "f")), "3 numbers each .* gallery 4"),
        (lambda encoder: encoder.search(np.ones((1, 3), "f"), np.ones((2, 3), "f"), k=0), "k must be 1 or more im"),
        (lambda encoder: encoder.search(np.ones((1, 3), "f"), np.ones((2, 3), "f"), k=2.5), "not 2.5"),
        (lambda encoder: encoder.load(encoder.run.workdir, size=(8, 8)), "a size is for files of weights"),
        (lambda encoder: encoder.load(encoder.run.workdir, size="8x8"), r"size must be \(height, width\) .* not '8x8'"),
        (lambda encoder: encoder.load(encoder.run.workdir, size=(-8, 8)), r"not \(-8, 8\)"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_sentence(encoder, call, words):
    with pytest.raises(UserError, match=words) as error:
        call(encoder)
    assert "\n" not in str(error.value) and "UserError" not in str(error.value)


def test_the_package_names_its_encoder_and_version(encoder, straight):
    assert {"Encoder", "__version__"} <= {*dir(metabin_jax)}
    assert metabin_jax.__version__ == importlib.metadata.version("metabin_jax")
    assert repr(encoder) == f"Encoder({straight[0]}, step 9, 32 x 32 pixels)"


def test_the_package_has_no_other_late_names():
    with pytest.raises(AttributeError, match="no attribute 'Decoder'"):
        _ = metabin_jax.Decoder
