"""The whole set in the memory of the device: a dispatch takes the rows of several steps, and the device gathers."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from metabin_jax.data.pipeline import READ_AHEAD, RawBatch, StepBatches
from metabin_jax.runtime.errors import UserError


class StepRows(NamedTuple):
    """Of K steps, the rows of X_B, X_S and X_T in the set: int32 [N, K]; without meta-learning the last two are None.

    The images come first, as in a StepBatches, so that both are cut over devices alike.
    """

    base: np.ndarray
    meta_train: np.ndarray | None = None
    meta_test: np.ndarray | None = None

    @property
    def num_steps(self) -> int:
        return self.base.shape[1]


def step_rows(rows: Callable[[int], Sequence[np.ndarray]], spans: list[range]) -> Iterator[StepRows]:
    """Yields the rows of each span of steps; `rows` as in `pipeline.batches`, which yields the same images."""

    def load(span: range) -> StepRows:
        return StepRows(*(np.stack(row_KN, axis=1).astype(np.int32) for row_KN in zip(*map(rows, span), strict=True)))

    return iter(grain.MapDataset.source(spans).map(load).to_iter_dataset(READ_AHEAD))


def cut(start: int, stop: int, steps_per_dispatch: int, steps_per_epoch: int) -> list[range]:
    """The steps start to stop - 1, so many at a time, and fewer where an epoch ends, as its checkpoint comes there."""
    spans = []
    while start < stop:
        end = min(start + steps_per_dispatch, (start // steps_per_epoch + 1) * steps_per_epoch, stop)
        spans.append(range(start, end))
        start = end
    return spans


def check_fits(num_images: int, size: tuple[int, int], device: Any) -> None:
    """Raises UserError if images of `size` (height, width) exceed what the device says it may use."""
    needed = num_images * math.prod(size) * 3
    limit = (device.memory_stats() or {}).get("bytes_limit")  # a CPU says nothing
    if limit is not None and needed > limit:
        raise UserError(
            f"the {num_images} images take {needed / 2**30:.1f} GiB, but JAX may use {limit / 2**30:.1f} GiB of "
            f"{device.device_kind}: train with --config.data.resident=False"
        )


def put(images: np.ndarray, pid: np.ndarray, domain: np.ndarray, sharding: jax.sharding.Sharding) -> RawBatch:
    """The set on the device: images uint8 [n, H, W, 3], pid and domain int [n]."""
    dataset = RawBatch(np.asarray(images), pid.astype(np.int32), domain.astype(np.int32))
    # Not jax.device_put, by which many processes would first compare what each of them has.
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), dataset
    )


def gather(dataset: RawBatch, row_N: Any) -> RawBatch:
    """The images of these rows, on the device."""
    return jax.tree.map(lambda leaf: leaf.at[row_N].get(mode="promise_in_bounds"), dataset)


def several_steps(step_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Several steps in one program, from the step (state, StepBatches, key) -> (state, metrics) of `train.make_step`.

    Returns (state, StepRows, key, dataset) -> (state, metrics), each metric [K]; the state is donated. The dataset is
    an argument because a constant would become part of the program.
    """

    def steps_fn(state: Any, rows: StepRows, key: jax.Array, dataset: RawBatch) -> tuple[Any, Any]:
        def one(state: Any, rows_of_step: StepRows) -> tuple[Any, Any]:
            raw = StepBatches(*(gather(dataset, row_N) for row_N in rows_of_step if row_N is not None))
            return step_fn(state, raw, key)

        return jax.lax.scan(one, state, jax.tree.map(jnp.transpose, rows))

    return jax.jit(steps_fn, donate_argnums=0)
