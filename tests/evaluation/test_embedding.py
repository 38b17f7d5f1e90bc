import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metabin_jax.data.augment import normalise
from metabin_jax.evaluation import embedding
from metabin_jax.evaluation.embedding import embed
from metabin_jax.runtime.devices import Placement

NUM_TRACES = []


class ToyNet(nn.Module):
    """Feature, embedding and logits differ; the embedding depends on `train` as BNNeck does."""

    dim: int = 5

    @nn.compact
    def __call__(self, image_NHWC, train):
        NUM_TRACES.append(image_NHWC.shape)
        feature_ND = nn.Dense(self.dim)(image_NHWC.mean((1, 2)))
        embedding_ND = nn.BatchNorm(use_running_average=not train)(feature_ND)
        return feature_ND, embedding_ND, nn.Dense(3)(embedding_ND)


@pytest.fixture(scope="module")
def net():
    model = ToyNet()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
    moments = {"mean": jnp.arange(5.0), "var": jnp.full(5, 4.0)}
    return model, {**variables, "batch_stats": {"BatchNorm_0": moments}}


@pytest.fixture(scope="module")
def image_NHWC():
    return np.random.default_rng([0]).integers(0, 256, (11, 6, 4, 3), np.uint8)


def by_hand(variables, image_NHWC):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    weights = variables["params"]["Dense_0"]
    kernel, bias = np.asarray(weights["kernel"], np.float64), np.asarray(weights["bias"], np.float64)
    feature_ND = ((image_NHWC / 255.0 - mean) / std).mean((1, 2)) @ kernel + bias
    return (feature_ND - np.arange(5)) / np.sqrt(4 + 1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_embedding_is_the_normalised_feature_whatever_the_padding(net, image_NHWC, batch_size):
    result = embed(*net, image_NHWC, batch_size)
    assert (result.dtype, result.shape) == (np.float32, (11, 5))
    np.testing.assert_allclose(result, by_hand(net[1], image_NHWC), rtol=1e-4, atol=1e-5)


def test_neither_the_feature_nor_training_mode_passes_for_the_embedding(net, image_NHWC):
    model, variables = net
    normalised = normalise(jnp.asarray(image_NHWC))
    feature_ND, _, _ = model.apply(variables, normalised, train=False)
    _, trained_ND, _ = model.apply(variables, normalised, train=True, mutable=["batch_stats"])[0]
    for wrong_ND in (feature_ND, trained_ND):
        assert np.abs(np.asarray(wrong_ND) - by_hand(variables, image_NHWC)).max() > 0.1


def test_one_trace_serves_any_number_of_images(net, image_NHWC):
    embed(*net, image_NHWC[:3], 7)
    NUM_TRACES.clear()
    for count in (1, 6, 7, 8, 11):
        embed(*net, image_NHWC[:count], 7)
    assert NUM_TRACES == []
    embed(*net, image_NHWC, 9)
    assert NUM_TRACES == [(10, 6, 4, 3)], "filled up to a multiple of the two devices"


def test_rows_choose_and_order_the_images_of_a_memory_map(net, image_NHWC, tmp_path):
    np.save(tmp_path / "image.npy", image_NHWC)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    rows = np.array([9, 0, 3, 3, 10])
    result = embed(*net, mapped, 4, rows)
    np.testing.assert_array_equal(result, embed(*net, image_NHWC, 4)[rows])
    assert np.abs(result[0] - result[1]).max() > 1e-3


def test_bfloat16_embeddings_come_back_as_float32(image_NHWC):
    class Narrow(nn.Module):
        def __call__(self, image_NHWC, train):
            narrow_ND = image_NHWC.mean((1, 2)).astype(jnp.bfloat16)
            return narrow_ND, narrow_ND, narrow_ND

    assert embed(Narrow(), {}, image_NHWC).dtype == np.float32


@pytest.mark.parametrize(
    ("image", "batch_size", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), 4, "RGB uint8 .* not float32"),
        (np.zeros((2, 4, 4, 1), np.uint8), 4, r"not uint8 \[2, 4, 4, 1\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), 4, "no images"),
        (np.zeros((2, 4, 4, 3), np.uint8), 0, "batch_size must be at least 1, not 0"),
    ],
)
def test_bad_input_is_named(net, image, batch_size, message):
    with pytest.raises(ValueError, match=message):
        embed(*net, image, batch_size)


def test_a_cpu_embeds_a_batch_in_parts(net, image_NHWC, monkeypatch):
    """11 images in parts of at most 4 are three parts of 4; images that are smaller are one part."""
    monkeypatch.setattr(embedding.os, "cpu_count", lambda: 2)
    for pixels, parts in ((2 * 6 * 4, [(4, 6, 4, 3)]), (2**15, [(12, 6, 4, 3)])):
        monkeypatch.setattr(embedding, "PIXELS", pixels)
        NUM_TRACES.clear()
        embedding._embed_batch.clear_cache()
        result = embed(*net, image_NHWC, 11)
        assert parts == NUM_TRACES
        np.testing.assert_allclose(result, by_hand(net[1], image_NHWC), rtol=1e-4, atol=1e-5)
        assert np.abs(result - by_hand(net[1], image_NHWC[::-1])).max() > 1e-2


def test_parts_move_no_image_between_devices(net):
    """The devices exchange the embeddings alone. In the order of the rows, a part is one device's."""
    placement = Placement.over(jax.devices())
    image_NHWC = jax.ShapeDtypeStruct((12, 6, 4, 3), jnp.uint8, sharding=placement.by_rows)

    def moved(jitted, *arguments):
        text = jitted.lower(*arguments, image_NHWC).compile().as_text()
        found = re.findall(r"= (\S+?)\{\S* (?:all-gather|all-reduce|all-to-all|collective-permute)\(", text)
        return set(found)

    model, variables = net
    assert moved(embedding._embed_batch, model, placement, 3, variables) == {"f32[4,3,5]"}

    @jax.jit
    def in_order(image_NHWC):
        part_SPHWC = image_NHWC.reshape(3, 4, 6, 4, 3)
        return jax.lax.map(lambda part: model.apply(variables, normalise(part), train=False)[1], part_SPHWC)

    assert any("6,4,3]" in shape for shape in moved(in_order)), "images"
