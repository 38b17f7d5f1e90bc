"""ONNX files that take normalised NCHW floats, against the net and a derivation of the input in NumPy."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_run import draw_folder, tiny_config

from metabin_jax import Encoder, cli
from metabin_jax.training import train
from metabin_jax.training.build import build, resolve
from metabin_jax.training.checkpoint import Checkpoints

onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported file")
pytest.importorskip("onnx", reason="makes the exported file")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    root = tmp_path_factory.mktemp("layout")
    config = resolve(tiny_config(draw_folder(root / "data", domains=("west", "east", "north", "south"))))
    train.describe_run(config, [], root / "run")
    with Checkpoints(root / "run", scored=False) as checkpoints:
        checkpoints.save(build(config).init())
    return root / "run"


def as_trackers_do(image_NHWC):
    """RGB / 255, by hand normalised with ImageNet's moments, channels first."""
    planes = [image_NHWC[..., channel] / 255.0 for channel in range(3)]
    moments = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
    return np.stack([(p - mean) / std for p, (mean, std) in zip(planes, moments, strict=True)], 1).astype(np.float32)


def test_a_file_for_nchw_floats_gives_the_embeddings_of_the_run(tmp_path, untrained):
    file = tmp_path / "net.onnx"
    assert cli.main(["export", f"--model={untrained}", "--to=onnx", "--layout=nchw-float", f"--output={file}"]) == 0
    session = onnxruntime.InferenceSession(file)
    (given,) = session.get_inputs()
    height = width = 32
    assert (given.name, given.type, given.shape) == ("image", "tensor(float)", ["batch", 3, height, width])
    image_NHWC = np.random.default_rng([4]).integers(0, 256, (3, height, width, 3), np.uint8)
    expected_ND = Encoder.load(untrained)([Image.fromarray(image) for image in image_NHWC])
    got_ND = session.run(["embedding"], {"image": as_trackers_do(image_NHWC)})[0]
    np.testing.assert_allclose(got_ND, expected_ND, atol=1e-5)
    blue_first = session.run(["embedding"], {"image": as_trackers_do(image_NHWC[..., ::-1])})[0]
    assert np.abs(blue_first - expected_ND).max() > 1e-3
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["input"] == f"image: float32 RGB [N, 3, {height}, {width}]"
    mean, std = facts["normalisation"].removeprefix("before: (pixel / 255 - ").split(") / ")
    assert (json.loads(mean), json.loads(std)) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_other_formats_have_one_layout(capsys, tmp_path, untrained):
    command = ["export", f"--model={untrained}", "--to=stablehlo", "--layout=nchw-float", f"--output={tmp_path}/net"]
    assert cli.main(command) == 2
    assert capsys.readouterr().err == "metabin export: --layout=nchw-float is for --to=onnx; got --to=stablehlo\n"
    assert not list(tmp_path.iterdir())
