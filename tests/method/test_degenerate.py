"""Batches without spread, or of absurd size: losses, gradients and second derivatives stay finite in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_options import COMPILE_QUICKLY

from metabin_jax import losses, norm

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)
ROWS = 8
LOSSES = {
    "cross_entropy": lambda x_ND, pid_N, domain_N: losses.cross_entropy(x_ND, pid_N),
    "triplet": lambda x_ND, pid_N, domain_N: losses.triplet(x_ND, pid_N),
    "scatter": lambda x_ND, pid_N, domain_N: losses.scatter(x_ND, domain_N),
    "scatter, normalised first": lambda x_ND, pid_N, domain_N: losses.scatter(x_ND, domain_N, normalize_first=True),
    "shuffle": losses.shuffle,
}
NORMAL = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
FEATURES = {
    "usual": NORMAL,
    "all equal": np.repeat(NORMAL[:1], ROWS, 0),
    "all but one equal": np.where(np.arange(ROWS)[:, None] == 3, NORMAL, NORMAL[:1]),
    "zero": np.zeros_like(NORMAL),
    "one is zero": np.where(np.arange(ROWS)[:, None] == 3, 0, NORMAL),
    "1e15": 1e15 * NORMAL,
    "1e-20": np.float32(1e-20) * NORMAL,
    "equal at 1e20": np.full_like(NORMAL, 1e20),
    "1e20": 1e20 * NORMAL,
}
PIDS = {"two each": np.arange(ROWS) // 2, "one identity": np.zeros(ROWS, int), "all others": np.arange(ROWS)}
DOMAINS = {"two": np.arange(ROWS) // 4, "one": np.zeros(ROWS, int)}


def derivatives(function):
    """Value, gradient, and the derivative of the gradient along itself and along a fixed direction."""

    def all_of(x, *rest):
        value, slope = jax.value_and_grad(function)(x, *rest)
        along = jnp.linspace(-1, 1, x.size).reshape(x.shape).astype(x.dtype)
        return value, slope, jax.jvp(lambda x: jax.grad(function)(x, *rest), (x,), (along,))[1]

    return jit(all_of)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    found = derivatives(LOSSES[name])
    wrong = []
    for feature in FEATURES:
        for pid_N in PIDS.values():
            for domain in DOMAINS:
                parts = found(jnp.asarray(FEATURES[feature]), pid_N, DOMAINS[domain])
                if not all(np.isfinite(part).all() for part in parts):
                    wrong.append((feature, pid_N.tolist(), domain, [bool(np.isfinite(part).all()) for part in parts]))
    assert wrong == []


@pytest.mark.parametrize("name", ["triplet", "shuffle"])
def test_losses_by_distance_scale_with_features_of_any_size(name):
    """Against float64, which has room for the squares. Without a margin, the loss scales with the features."""
    large = 1e20 * NORMAL
    labels = PIDS["two each"], DOMAINS["two"]
    loss, slope, _ = derivatives(LOSSES[name])(jnp.asarray(large), *labels)
    with jax.enable_x64(True):
        expected, expected_slope, _ = derivatives(LOSSES[name])(jnp.asarray(large, jnp.float64), *labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, atol=1e-5)


IMAGES = {
    "constant": np.full((4, 3, 5, 2), 0.7, np.float32),
    "zero": np.zeros((4, 3, 5, 2), np.float32),
    "constant image by image": np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None, None], (4, 3, 5, 2)),
    "1e15": 1e15 * np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype(np.float32),
    "one pixel": np.random.default_rng(0).normal(size=(4, 1, 1, 2)).astype(np.float32),
}


@pytest.mark.parametrize("name", norm.LAYERS)
def test_norm_layers(name):
    layer = norm.create(name)(0.1, "norm")
    for image, x_NHWC in IMAGES.items():
        variables = layer.init(jax.random.key(0), x_NHWC, True)

        def loss(x_NHWC, layer=layer, variables=variables):
            y_NHWC, _ = layer.apply(variables, x_NHWC, True, mutable=["batch_stats"])
            return (y_NHWC**2 * jnp.linspace(0.5, 1, y_NHWC.size).reshape(y_NHWC.shape)).sum()

        assert all(np.isfinite(part).all() for part in derivatives(loss)(jnp.asarray(x_NHWC))), image


@pytest.mark.parametrize("name", norm.LAYERS)
@pytest.mark.parametrize("offset", [60_000, -60_000])
def test_half_precision_with_a_large_offset(name, offset):
    """The sum of 512 such values is far beyond float16, and so is the square of one."""
    noise_NHWC = np.random.default_rng(0).normal(0, 500, (2, 16, 16, 3))
    x_NHWC = jnp.asarray((offset + noise_NHWC).clip(-65_504, 65_504), jnp.float16)
    layer = norm.create(name)(0.1, "norm")
    variables = layer.init(jax.random.key(0), x_NHWC, True)
    apply = jit(lambda x_NHWC: layer.apply(variables, x_NHWC, True, mutable=["batch_stats"]))
    (y_NHWC, moments), (exact_NHWC, exact) = apply(x_NHWC), apply(x_NHWC.astype(jnp.float32))
    assert y_NHWC.dtype == jnp.float16
    np.testing.assert_allclose(y_NHWC.astype(jnp.float32), exact_NHWC, atol=4e-3)
    for found, expected in zip(jax.tree.leaves(moments), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(found, expected)
