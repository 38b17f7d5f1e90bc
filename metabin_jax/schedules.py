"""Step-size schedules as optax schedules: functions of the (traced or Python) step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def triangular(low: float, high: float, up: int, down: int) -> optax.Schedule:
    """Cyclic beta, the triangular policy of [39] (Sec. 3.3).

    Each cycle rises linearly from low to high in `up` steps and falls back to low in `down` steps. Raises ValueError
    when up or down is below 1.
    """
    if up < 1 or down < 1:
        raise ValueError(f"a triangular cycle needs up and down of at least 1 step, got {up} and {down}")
    one_cycle = optax.join_schedules(
        [optax.linear_schedule(low, high, up), optax.linear_schedule(high, low, down)], [up]
    )
    return lambda step: one_cycle(_widest(step % (up + down)))


def warmup_step(
    base: float, warmup: int, boundaries: Sequence[int], factor: float = 0.1, start: float = 0.01
) -> optax.Schedule:
    """Alpha (Sec. 4.1): rises linearly from start * base to base in `warmup` steps, times `factor` at each boundary.

    warmup and boundaries are in steps, and a boundary takes effect at that step. With warmup 0, alpha starts at base.
    """
    decay = optax.piecewise_constant_schedule(base, dict.fromkeys(boundaries, factor))
    if warmup == 0:
        return lambda step: decay(_widest(step))
    rise = optax.linear_schedule(start, 1.0, warmup)
    return lambda step: rise(_widest(step)) * decay(_widest(step))


def _widest(step: jax.typing.ArrayLike) -> jax.Array:
    """The step as a float of JAX's full width. From an integer, optax computes in float32 even in float64 mode."""
    return jnp.asarray(step, float)
