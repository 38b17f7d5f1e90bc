"""Backbones and head at full size, forward, against the PyTorch twin; every layer in the `tiny` net."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_options import COMPILE_QUICKLY

from metabin_jax import models
from metabin_jax.models.reid import BACKBONES

torch = pytest.importorskip("torch")

from torch_nets import build, from_flax, load_flax
from twin_compare import distance, worst

CLASSES = 5
IMAGES, HEIGHT, WIDTH = 2, 48, 32


def random_variables(model, image_NHWC, rng):
    """Kernels that keep the signal's size, norms and running moments far from their start, rho anywhere."""
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(image_NHWC.shape, jnp.float32), train=False)
    )

    def value(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        low, high = {"rho": (-0.2, 1.2), "mean": (-1, 1)}.get(name, (0.5, 1.5))
        uniform = rng.uniform(low, high, leaf.shape)
        return np.clip(uniform, 0, 1) if name == "rho" else uniform

    return jax.tree_util.tree_map_with_path(value, shapes)


def run_both(ours, theirs, train, seed=3):
    """Feature, embedding, logits and new running statistics of both, in float64."""
    rng = np.random.default_rng(seed)
    image_NHWC = rng.normal(size=(IMAGES, HEIGHT, WIDTH, 3))
    variables = random_variables(ours, image_NHWC, rng)
    load_flax(theirs.double(), variables)

    def forward(variables, image_NHWC):
        return ours.apply(variables, image_NHWC, train=train, mutable=["batch_stats"])

    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (variables, image_NHWC))
        outputs, updated = jax.jit(forward, compiler_options=COMPILE_QUICKLY)(*arguments)
    with torch.no_grad():
        twin_outputs = theirs.train(train)(torch.from_numpy(image_NHWC).permute(0, 3, 1, 2))
    names = ("feature", "embedding", "logits")
    actual = dict(zip(names, outputs, strict=True)) | from_flax(updated["batch_stats"], theirs)
    buffers = {name: b for name, b in theirs.named_buffers() if "running" in name}
    return actual, dict(zip(names, twin_outputs, strict=True)) | buffers


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("mobilenetv2_1.4", "metabin"),
        ("mobilenetv2_standard_1.4", "metabin"),
        ("resnet50", "metabin"),
        ("resnet50", "ibn_a"),
    ],
)
def test_backbone_equals_twin(name, norm):
    difference, where = worst(*run_both(models.create(name, CLASSES, norm), build(name, CLASSES, norm), train=True))
    assert difference < 1e-9, where


def tiny_twin(norm, **kw):
    return build("mobilenetv2_1.0", CLASSES, norm, **BACKBONES["tiny"].keywords | kw)


@pytest.mark.parametrize(
    ("norm", "train"),
    [(norm, True) for norm in ("bn", "in", "half", "dualnorm", "ibn_a", "bin", "metabin")] + [("metabin", False)],
)
def test_tiny_equals_twin(norm, train):
    difference, where = worst(*run_both(models.create("tiny", CLASSES, norm), tiny_twin(norm), train))
    assert difference < 1e-9, where


def test_activation_is_a_choice():
    ours = models.create("tiny", CLASSES, act=nn.silu)
    assert worst(*run_both(ours, tiny_twin("metabin", act=torch.nn.SiLU), train=True))[0] < 1e-9
    actual, expected = run_both(ours, tiny_twin("metabin"), train=True)
    assert distance(actual["feature"], expected["feature"]) > 1e-2


def test_asymmetric_padding_is_seen():
    """TensorFlow's SAME pads a stride-2 convolution on one side only."""
    theirs = tiny_twin("metabin")
    theirs.backbone.stem.padding = (0, 0)
    theirs.backbone.stem.register_forward_pre_hook(lambda _, x: torch.nn.functional.pad(x[0], (0, 1, 0, 1)))
    actual, expected = run_both(models.create("tiny", CLASSES), theirs, train=True)
    assert distance(actual["feature"], expected["feature"]) > 1e-2
