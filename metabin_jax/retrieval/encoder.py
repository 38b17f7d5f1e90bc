"""Image files to features by a trained run: decoded by threads ahead of the device, a few batches at a time."""

import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import grain
import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.cache import decode_image
from metabin_jax.data.listing import Listed
from metabin_jax.evaluation.distances import unit_length
from metabin_jax.evaluation.embedding import embed_batches
from metabin_jax.retrieval.features import Features
from metabin_jax.runtime.errors import UserError
from metabin_jax.training import trained

PROGRESS_EVERY = 2.0  # seconds


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A trained net and what it takes: size is (height, width) in pixels, made_by as in `Features`."""

    model: nn.Module
    variables: dict
    size: tuple[int, int]
    batch_size: int
    made_by: dict[str, Any]


def load_encoder(workdir: str | Path) -> Encoder:
    """The net of a workdir of `metabin train`, at the checkpoint that its config selects.

    Raises UserError or FileNotFoundError where there is no run or no checkpoint.
    """
    run = trained.load(workdir)
    return Encoder(run.model, run.variables, run.size, run.batch_size, run.made_by())


def embed_images(encoder: Encoder, images: Sequence[Listed]) -> tuple[Features, list[str]]:
    """The features of `images`, in their order, and the paths of those that cannot be read, which are left out.

    Raises:
      ValueError: no image can be read, or a feature is not finite.
    """
    paths = [image.path for image in images]
    broken: list[int] = []

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for image_NHWC, broken_of_batch in read_batches(paths, encoder.size, batch_size):
            broken.extend(broken_of_batch)
            yield image_NHWC

    batch_size = min(encoder.batch_size, len(paths))
    feature_of_batch = []
    with _Progress(len(paths)) as progress:
        for feature_ND in embed_batches(encoder.model, encoder.variables, pixels()):
            feature_of_batch.append(unit_length(feature_ND))
            progress.show(min(len(feature_of_batch) * batch_size, len(paths)))
    kept = np.delete(np.arange(len(paths)), broken)
    if not len(kept):
        raise UserError(f"none of the {len(paths)} images can be read; the first is {paths[0]}.")
    feature_ND = np.concatenate(feature_of_batch)[kept]
    if not np.isfinite(feature_ND).all():
        raise UserError(f"features are not finite: the weights in {encoder.made_by['run']} are no good.")
    path, pid, camid, domain = (np.array(column)[kept] for column in zip(*images, strict=True))
    features = Features(path, feature_ND, pid, camid, domain, encoder.made_by)
    return features, [paths[row] for row in broken]


def read_batches(
    paths: Sequence[str], size: tuple[int, int], batch_size: int
) -> Iterator[tuple[NDArray[np.uint8], list[int]]]:
    """Batches uint8 [batch_size, H, W, 3] in order, each with the rows of `paths` in it that cannot be read.

    These, and what is missing of the last batch, are zeros. A thread decodes a batch, as one image would be too small
    a task to hand over; a batch per core waits for its turn.
    """

    def load(number: int) -> tuple[NDArray[np.uint8], list[int]]:
        first = number * batch_size
        image_NHWC = np.zeros((batch_size, *size, 3), np.uint8)
        broken = []
        for place, path in enumerate(paths[first : first + batch_size]):
            try:
                image_NHWC[place] = decode_image(path, size)
            except Exception:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
                broken.append(first + place)
        return image_NHWC, broken

    cores = os.cpu_count() or 1
    ahead = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=2 * cores)
    return iter(grain.MapDataset.range(-(-len(paths) // batch_size)).map(load).to_iter_dataset(ahead))


class _Progress:
    """A line on stderr, from the second batch on (the first one waits for the compilation). Use as a context."""

    def __init__(self, total: int):
        self._total, self._first, self._since, self._shown, self._end = total, 0, 0.0, 0.0, ""

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        print(self._end, end="", file=sys.stderr, flush=True)

    def show(self, done: int) -> None:
        now = time.monotonic()
        if not self._first:
            self._first, self._since, self._shown = done, now, now
        elif now - self._shown >= PROGRESS_EVERY or (self._end and done == self._total):
            rate = (done - self._first) / (now - self._since)
            eta = datetime.timedelta(seconds=round((self._total - done) / rate))
            line = f"embedding: {done}/{self._total}  {rate:.0f} images/s  ETA {eta}"
            on_terminal = sys.stderr.isatty()
            print(f"\r{line}" if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)
            self._shown, self._end = now, "\n" if on_terminal else ""
