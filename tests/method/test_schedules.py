"""The schedules by hand: corners, boundaries, long runs, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metabin_jax.schedules import triangular, warmup_step


def traced(schedule, steps):
    """The values at int32 steps, as a training loop computes them."""
    return jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32))


# step: share of the way from low to high, for 4 steps up and 5 down
CORNERS = {0: 0, 1: 1 / 4, 3: 3 / 4, 4: 1, 5: 4 / 5, 8: 1 / 5, 9: 0, 10: 1 / 4, 13: 1, 17: 1 / 5, 18: 0}


def test_triangular_by_hand():
    values = traced(triangular(0.001, 0.1, up=4, down=5), list(CORNERS))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, 0.001 + 0.099 * np.array(list(CORNERS.values())), rtol=0, atol=1e-8)


def test_triangular_is_exact_in_a_long_run():
    """A float32 step counts only to 2 ** 24: the remainder is one of integers."""
    up, down, periods = 4622, 4623, 200_000
    near, far = traced(triangular(1e-4, 1e-2, up, down), [1000, periods * (up + down) + 1000])
    np.testing.assert_allclose(near, 1e-4 + (1e-2 - 1e-4) * 1000 / up, rtol=1e-6)
    assert near == far
    assert np.float32(periods * (up + down) + 1000) % np.float32(up + down) != 1000


def test_shortest_triangle():
    np.testing.assert_allclose(traced(triangular(1, 3, 1, 1), range(5)), [1, 3, 1, 3, 1])


@pytest.mark.parametrize(("up", "down"), [(0, 5), (4, 0), (-1, 5)])
def test_triangle_without_a_side_is_refused(up, down):
    with pytest.raises(ValueError, match=rf"at least 1 step, got {up} and {down}"):
        triangular(0.001, 0.1, up, down)


# step: alpha over base, for 10 steps of warm-up from 0.01 and boundaries at 12 and 20
WARMUP = {0: 0.01, 1: 0.109, 5: 0.505, 9: 0.901, 10: 1, 11: 1, 12: 0.1, 19: 0.1, 20: 0.01, 10**7: 0.01}


def test_warmup_step_by_hand():
    values = traced(warmup_step(0.05, 10, [12, 20], factor=0.1, start=0.01), list(WARMUP))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, 0.05 * np.array(list(WARMUP.values())), rtol=1e-5)


def test_without_warmup_alpha_starts_at_base():
    values = traced(warmup_step(0.05, 0, [2], factor=0.5), range(4))
    np.testing.assert_allclose(values, [0.05, 0.05, 0.025, 0.025], rtol=1e-6)


def test_boundary_inside_the_warmup_counts_too():
    values = traced(warmup_step(1, 4, [2], factor=0.1, start=0), range(6))
    np.testing.assert_allclose(values, [0, 0.25, 0.05, 0.075, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("schedule", [triangular(0.001, 0.1, 4, 5), warmup_step(0.05, 10, [12])])
def test_python_and_traced_steps_agree_in_both_precisions(schedule):
    for enabled, dtype, tolerance in ((False, jnp.float32, 1e-6), (True, jnp.float64, 1e-15)):
        with jax.enable_x64(enabled):
            values = traced(schedule, range(15))
            assert values.dtype == dtype
            np.testing.assert_allclose(values, [schedule(step) for step in range(15)], rtol=tolerance)
