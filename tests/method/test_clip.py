"""The two clips of the inner step: values and gradients, inside of the box, outside and on its edge."""

import functools

import jax
import numpy as np
import pytest
from compile_options import COMPILE_QUICKLY

from metabin_jax.learner import clip_plain, clip_straight_through

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_clip_straight_through():
    outside = [1 + 1e-7, -1e-9, 3.7, -40.0, 1e30, 0.0, 1.0]
    rho = np.concatenate([outside, np.random.default_rng([8]).uniform(-2, 3, 200)])
    cotangent = np.random.default_rng([9]).normal(size=len(rho))

    @jit
    def value_and_gradient(rho, cotangent):
        value, pull = jax.vjp(clip_straight_through, rho)
        return value, *pull(cotangent)

    for dtype in (np.float32, np.float64):
        value, gradient = value_and_gradient(rho.astype(dtype), cotangent.astype(dtype))
        assert value.dtype == gradient.dtype == dtype
        np.testing.assert_array_equal(value, np.clip(rho.astype(dtype), 0, 1))
        np.testing.assert_array_equal(gradient, cotangent.astype(dtype))


def test_clip_plain():
    """By central differences away from the edge; on it the gradient is 1, and the value is that of the other clip."""
    rho = np.array([-40.0, -1e-3, 1e-3, 0.4, 1 - 1e-3, 1 + 1e-3, 3.7])
    gradient = np.asarray(jax.vmap(jax.grad(clip_plain))(rho))
    np.testing.assert_allclose(gradient, [(clip_plain(r + 1e-4) - clip_plain(r - 1e-4)) / 2e-4 for r in rho], atol=1e-9)
    np.testing.assert_array_equal(gradient, [0, 0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(clip_plain))(np.array([0.0, 1.0])), 1)
    np.testing.assert_array_equal(clip_plain(rho), np.clip(rho, 0, 1))
