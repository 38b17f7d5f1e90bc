"""Batches for the training loop: indices from the samplers and pixels from the cache, prefetched by grain."""

import math
import mmap
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

# A step at 256x128 gathers about 16 MB. A few steps ahead hide the disk; more would only take memory.
READ_AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)


class RawBatch(NamedTuple):
    """N images as they are stored: image uint8 [N, H, W, 3], pid int32 [N], domain int32 [N]."""

    image: np.ndarray
    pid: np.ndarray
    domain: np.ndarray


class StepBatches(NamedTuple):
    """What one iteration of Algorithm 1 sees: X_B, X_S and X_T; without meta-learning the last two are None."""

    base: RawBatch
    meta_train: RawBatch | None = None
    meta_test: RawBatch | None = None

    @property
    def num_steps(self) -> int:
        return 1


class Buffers:
    """Memory for arrays of uint8, reused when the last array in it is freed: new pages cost more than a copy."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Like np.empty; several threads may call it."""
        free = self._free[math.prod(shape)]
        try:
            memory = free.pop()
        except IndexError:
            memory = mmap.mmap(-1, math.prod(shape))
        array = np.frombuffer(memory, np.uint8)
        # Every view has `array` as its base, and JAX keeps a reference to arrays that it reads without a copy.
        weakref.finalize(array, free.append, memory)
        return array.reshape(shape)


def batches(
    images: np.ndarray,
    pid: np.ndarray,
    domain: np.ndarray,
    rows: Callable[[int], Sequence[np.ndarray]],
    start_step: int,
    stop_step: int,
) -> Iterator[StepBatches]:
    """Yields the batches of steps start_step to stop_step - 1. They do not depend on where a run starts.

    images: uint8 [n, H, W, 3]. pid, domain: int [n]. rows: step -> the indices of X_B and, with meta-learning, of X_S
    and X_T.
    """
    pixels, buffers = np.asarray(images), Buffers()

    def gather(index: np.ndarray) -> RawBatch:
        image = buffers.empty((len(index), *pixels.shape[1:]))
        np.take(pixels, index, axis=0, out=image, mode="clip")  # the default mode, "raise", copies twice
        return RawBatch(image, pid[index].astype(np.int32), domain[index].astype(np.int32))

    def load(step: int) -> StepBatches:
        return StepBatches(*map(gather, rows(step)))

    return iter(grain.MapDataset.range(start_step, stop_step).map(load).to_iter_dataset(READ_AHEAD))
