"""Pictures to features with a trained net. Threads decode a few batches ahead of the device."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import grain
import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metabin_jax.data.cache import Picture, decode_image, fault
from metabin_jax.evaluation.distances import unit_length
from metabin_jax.evaluation.embedding import embed_batches
from metabin_jax.retrieval.features import Features, join
from metabin_jax.retrieval.listing import Listed
from metabin_jax.retrieval.search import nearest
from metabin_jax.runtime.errors import UserError, first_line
from metabin_jax.runtime.progress import Progress, patience
from metabin_jax.training import trained
from metabin_jax.training.trained import Trained

Broken = tuple[int, Exception]  # the row of a picture that could not be read, and why


class Encoder:
    """A trained net in use: pictures in, features out.

        encoder = metabin_jax.Encoder.load("runs/mine")
        feature_ND = encoder(["a.jpg", picture])
        row_QK, similarity_QK = encoder.search("new.jpg", feature_ND, k=5)

    size: (height, width) in pixels, to which pictures are resized as in training.
    """

    def __init__(self, run: Trained):
        self.run, self.size = run, run.size

    @classmethod
    def load(cls, run_or_file: str | Path, size: tuple[int, int] | None = None) -> "Encoder":
        """The selected checkpoint of a workdir of `metabin train`, or the net of a file (.pth, .safetensors).

        size: (height, width) for a file, by default 256 x 128. Raises UserError or FileNotFoundError.
        """
        if size is not None and (not isinstance(size, tuple) or len(size) != 2 or min(size) < 1):
            raise UserError(f"size must be (height, width) in pixels, such as (256, 128), not {size!r}")
        return cls(trained.load(run_or_file, size=size))

    def __call__(self, pictures: Picture | Sequence[Picture]) -> NDArray[np.float32]:
        """Features [N, D] of length one: the product of two is their cosine similarity.

        pictures: N paths, PIL images or RGB arrays uint8 [H, W, 3] of NumPy or JAX, of any size, mixed as you like; or
        a single one (N = 1); or an array uint8 [N, H, W, 3]. Raises UserError, which names the picture, if one cannot
        be read.
        """
        single = isinstance(pictures, str | os.PathLike | Image.Image) or getattr(pictures, "ndim", 1) in (2, 3)
        if not single and not isinstance(pictures, Iterable):
            raise UserError(f"pictures are paths, PIL images or arrays, not {type(pictures).__name__}")
        several: list[Any] = [pictures] if single else [*cast(Sequence[Picture], pictures)]
        several = [np.asarray(each) if isinstance(each, jax.Array) else each for each in several]
        if not several:
            raise UserError("there are no pictures to embed")
        # Sizes are powers of two, so that few programs serve any number of pictures.
        batch_size = min(self.run.batch_size, 1 << (len(several) - 1).bit_length())
        broken: list[Broken] = []
        feature_ND = np.concatenate([*_features(self.run, several, batch_size, broken)])
        if broken:
            row, error = broken[0]
            named = several[row] if isinstance(several[row], str | os.PathLike) else f"picture {row}"
            why = str(error) if isinstance(error, UserError) else first_line(error)
            raise UserError(f"{named} cannot be read: {why}") from error
        return feature_ND

    def search(self, query: Any, gallery: Any, k: int = 10) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k most similar of the gallery for each query, exactly: rows [Q, k] and cosine similarities [Q, k].

        query, gallery: features [N, D] of this encoder, or pictures. Fewer than k if the gallery is smaller. Raises
        UserError for features of different widths, or a k that is no number of images.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise UserError(f"k must be 1 or more images, not {k!r}")
        query_QD, gallery_GD = map(self._embedded, (query, gallery))
        if query_QD.shape[1] != gallery_GD.shape[1]:
            widths = f"{query_QD.shape[1]} numbers each and those of the gallery {gallery_GD.shape[1]}"
            raise UserError(f"the features of the query have {widths}: they are of two models")
        return nearest(query_QD, gallery_GD, min(k, len(gallery_GD)))

    def _embedded(self, given: Any) -> NDArray[np.float32]:
        is_feature = isinstance(given, np.ndarray | jax.Array) and given.dtype.kind == "f" and given.ndim == 2
        return np.asarray(given) if is_feature else self(given)

    def __repr__(self) -> str:
        return f"Encoder({self.run.workdir}, step {self.run.step}, {self.size[0]} x {self.size[1]} pixels)"


def embed_images(run: Trained, images: Sequence[Listed]) -> tuple[Features, list[str]]:
    """Embeds `images` in their order. Returns their features, and the paths of images that cannot be read.

    Raises UserError if no image can be read or a feature is not finite.
    """
    broken: list[str] = []
    parts = [*embed_batchwise(run, images, broken)]
    if len(broken) == len(images):
        raise UserError(f"no image can be read, of {len(images):,}; the first is {broken[0]}.")
    return join(parts), broken


def embed_batchwise(run: Trained, images: Sequence[Listed], broken: list[str]) -> Iterator[Features]:
    """Yields the features of one batch after the other; adds what cannot be read, as `fault` names it, to `broken`."""
    unread: list[Broken] = []
    done, batch_size = 0, min(run.batch_size, len(images))
    found = _features(run, [image.path for image in images], batch_size, unread)
    with patience("compiling the net and embedding the first images, half a minute the first time"):
        first = next(found)
    with Progress("embedding", len(images)) as progress:
        for feature_ND in itertools.chain([first], found):
            batch = images[done : done + len(feature_ND)]
            own = {row - done: error for row, error in unread if done <= row < done + len(batch)}
            kept = ~np.isin(np.arange(len(batch)), [*own])
            broken += [fault(batch[row].path, error) for row, error in own.items()]
            path, pid, camid, domain = (np.array(column)[kept] for column in zip(*batch, strict=True))
            yield Features(path, feature_ND[kept], pid, camid, domain, run.made_by)
            done += len(batch)
            if progress.n:
                progress.update(len(batch))
            else:  # the first batch waits for the compilation
                progress.start_clock(len(batch))


def _features(
    run: Trained, pictures: Sequence[Picture], batch_size: int, broken: list[Broken]
) -> Iterator[NDArray[np.float32]]:
    """Yields the features of one batch after the other. Adds what could not be read to `broken`.

    Raises UserError for a feature that is not finite.
    """

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for image_NHWC, broken_of_batch in read_batches(pictures, run.size, batch_size):
            broken.extend(broken_of_batch)
            yield image_NHWC

    done = 0
    for embedding_ND in embed_batches(run.model, run.variables, pixels(), batch_size):
        feature_ND = unit_length(embedding_ND[: len(pictures) - done])
        if not np.isfinite(feature_ND).all():
            raise UserError(f"features are not finite: check the weights in {run.workdir}.")
        done += len(feature_ND)
        yield feature_ND


def read_batches(
    pictures: Sequence[Picture], size: tuple[int, int], batch_size: int
) -> Iterator[tuple[NDArray[np.uint8], list[Broken]]]:
    """Yields batches uint8 [batch_size, H, W, 3] in order, each with those of its pictures that could not be read.

    Images that could not be read are zeros; so is the rest of the last batch. A thread decodes a whole batch, because
    one image is too small a task to hand over.
    """

    def load(number: int) -> tuple[NDArray[np.uint8], list[Broken]]:
        first = number * batch_size
        image_NHWC = np.zeros((batch_size, *size, 3), np.uint8)
        broken: list[Broken] = []
        for place, picture in enumerate(pictures[first : first + batch_size]):
            try:
                image_NHWC[place] = decode_image(picture, size)
            except Exception as error:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
                broken.append((first + place, error.with_traceback(None)))  # which would keep the batch in memory
        return image_NHWC, broken

    cores = os.cpu_count() or 1
    ahead = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=2 * cores)
    return iter(grain.MapDataset.range(-(-len(pictures) // batch_size)).map(load).to_iter_dataset(ahead))
