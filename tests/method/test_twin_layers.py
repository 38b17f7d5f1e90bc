"""The normalisation layers against nn.BatchNorm2d, nn.InstanceNorm2d and their mixtures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metabin_jax import norm

torch = pytest.importorskip("torch")

from torch_nets import LAYERS, from_flax, load_flax
from twin_compare import distance, worst

CHANNELS = 7
SHAPE_NHWC = (6, 5, 4, CHANNELS)
VALUES_PER_CHANNEL = 6 * 5 * 4


def random_variables(layer, x_NHWC, rng):
    """Far from their start; rho inside the box and on both edges."""
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros(x_NHWC.shape, jnp.float32), train=False))
    variables = jax.tree.map(lambda leaf: rng.normal(1, 0.5, leaf.shape), shapes)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda leaf: rng.uniform(0.5, 2, leaf.shape), variables["batch_stats"])
    if "rho" in variables:
        variables["rho"]["rho"] = np.clip(rng.uniform(-0.3, 1.3, CHANNELS), 0, 1)
    return variables


@functools.cache
def run_both(name, train, dtype, **settings):
    """Output, running statistics and gradients of <output, cotangent>, ours and the twin's, by its names."""
    rng = np.random.default_rng([7, sorted(LAYERS).index(name)])
    x_NHWC = rng.normal(rng.normal(0, 3, CHANNELS), rng.uniform(0.2, 3, CHANNELS), SHAPE_NHWC).astype(dtype)
    cotangent_NHWC = rng.normal(size=SHAPE_NHWC).astype(dtype)
    layer = norm.LAYERS[name][0](**settings)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), random_variables(layer, x_NHWC, rng))
    stats = variables.pop("batch_stats", {})

    def contracted(x, trained):
        y, updated = layer.apply({**trained, "batch_stats": stats}, x, train=train, mutable=["batch_stats"])
        return (y * cotangent_NHWC).sum(), (y, updated.get("batch_stats", {}))

    arguments = jax.tree.map(jnp.asarray, (x_NHWC, variables))
    stats = jax.tree.map(jnp.asarray, stats)
    (dx, dtrained), (y, new_stats) = jax.jit(jax.grad(contracted, argnums=(0, 1), has_aux=True))(*arguments)

    twin = LAYERS[name](CHANNELS).to(torch.from_numpy(x_NHWC).dtype).train(train)
    load_flax(twin, {**variables, "batch_stats": stats})
    x = torch.from_numpy(x_NHWC).permute(0, 3, 1, 2).requires_grad_()
    twin_y = twin(x)
    (twin_y.permute(0, 2, 3, 1) * torch.from_numpy(cotangent_NHWC)).sum().backward()

    ours = {"y": y, "dx": dx}
    theirs = {"y": twin_y.permute(0, 2, 3, 1), "dx": x.grad.permute(0, 2, 3, 1)}
    for collection in dtrained.values():
        ours |= {f"d {key}": value for key, value in from_flax(collection, twin).items()}
    theirs |= {f"d {key}": p.grad for key, p in twin.named_parameters()}
    ours |= from_flax(new_stats, twin)
    theirs |= {key: b for key, b in twin.named_buffers() if "running" in key}
    assert all(np.asarray(value).dtype == dtype for value in ours.values())
    return ours, theirs


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer_equals_twin(name, train):
    with jax.enable_x64(True):
        ours, theirs = run_both(name, train, np.float64)
    difference, where = worst(ours, theirs)
    assert difference < 1e-11, where
    difference, where = worst(*run_both(name, train, np.float32))
    assert difference < 1e-4, where


@pytest.mark.parametrize("name", ["metabin", "bin", "bn", "half"])
def test_inverted_momentum_is_seen(name):
    with jax.enable_x64(True):
        ours, theirs = run_both(name, True, np.float64, momentum=0.9)
    assert worst({"y": ours["y"]}, {"y": theirs["y"]})[0] < 1e-11
    assert all(distance(ours[key], theirs[key]) > 1e-2 for key in theirs if "running" in key)


def test_biased_running_variance_is_seen():
    with jax.enable_x64(True):
        ours, theirs = run_both("bn", True, np.float64)
        stats, biased = run_both("bn", True, np.float64, momentum=1.0)[0], 1 - 1 / VALUES_PER_CHANNEL
    wrong = theirs["running_var"].numpy() - 0.1 * (1 - biased) * stats["running_var"].numpy()
    assert distance(ours["running_var"], wrong) > 1e-4


def test_another_epsilon_is_seen():
    with jax.enable_x64(True):
        ours, theirs = run_both("metabin", True, np.float64, epsilon=1.001e-5)
    assert all(distance(ours[key], theirs[key]) > 1e-10 for key in ("y", "dx", "d rho"))
