"""Embeds image files with a trained run. Threads decode a few batches ahead of the device."""

import os
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.cache import decode_image
from metabin_jax.evaluation.distances import unit_length
from metabin_jax.evaluation.embedding import embed_batches
from metabin_jax.retrieval.features import Features
from metabin_jax.retrieval.listing import Listed
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.progress import Progress
from metabin_jax.training.trained import Trained


def embed_images(run: Trained, images: Sequence[Listed]) -> tuple[Features, list[str]]:
    """Embeds `images` in their order. Returns their features, and the paths of images that cannot be read.

    Raises UserError if no image can be read or a feature is not finite.
    """
    paths = [image.path for image in images]
    broken: list[int] = []

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for image_NHWC, broken_of_batch in read_batches(paths, run.size, batch_size):
            broken.extend(broken_of_batch)
            yield image_NHWC

    batch_size = min(run.batch_size, len(paths))
    feature_of_batch = []
    with Progress("embedding", len(paths)) as progress:
        for feature_ND in embed_batches(run.model, run.variables, pixels(), batch_size):
            feature_of_batch.append(unit_length(feature_ND))
            done = min(batch_size, len(paths) - progress.n)
            if progress.n:
                progress.update(done)
            else:  # the first batch waits for the compilation
                progress.start_clock(done)
    kept = np.delete(np.arange(len(paths)), broken)
    if not len(kept):
        raise UserError(f"none of the {len(paths)} images can be read; the first is {paths[0]}.")
    feature_ND = np.concatenate(feature_of_batch)[kept]
    if not np.isfinite(feature_ND).all():
        raise UserError(f"features are not finite: check the weights in {run.workdir}.")
    path, pid, camid, domain = (np.array(column)[kept] for column in zip(*images, strict=True))
    features = Features(path, feature_ND, pid, camid, domain, run.made_by)
    return features, [paths[row] for row in broken]


def read_batches(
    paths: Sequence[str], size: tuple[int, int], batch_size: int
) -> Iterator[tuple[NDArray[np.uint8], list[int]]]:
    """Yields batches uint8 [batch_size, H, W, 3] in order, each with the rows of `paths` that could not be read.

    Images that could not be read are zeros; so is the rest of the last batch. A thread decodes a whole batch, because
    one image is too small a task to hand over.
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
