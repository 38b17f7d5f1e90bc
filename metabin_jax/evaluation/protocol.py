"""Which images of a domain are queries, which are its gallery, and what a camera means."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.records import Record
from metabin_jax.data.sets.catalogue import SINGLE_SHOT
from metabin_jax.data.sets.splits import single_shot_splits
from metabin_jax.evaluation.inputs import Labels
from metabin_jax.runtime.errors import UserError

CameraPolicy = Literal["cross-camera", "ignore"]


class QueryGallery(NamedTuple):
    """Indices into the records, and the labels that go with them (all int64)."""

    query_row: NDArray[np.int64]
    gallery_row: NDArray[np.int64]
    query_pid: NDArray[np.int64]
    gallery_pid: NDArray[np.int64]
    query_camid: NDArray[np.int64]
    gallery_camid: NDArray[np.int64]

    @property
    def labels(self) -> Labels:
        """What `retrieval_metrics` and `verification` take after the features."""
        return Labels(*self[2:])


def query_gallery(records: Sequence[Record], policy: CameraPolicy = "cross-camera") -> QueryGallery:
    """Splits the records of ONE domain.

    Where records are marked query or gallery, those marks hold and records of other splits are left out.
    Otherwise every image is a query against all images, those for training left out unless there are no others.

    Args:
      policy: "cross-camera" keeps the records' camids, so that images of the query's identity from its own
        camera are dropped from its list. "ignore" replaces each camid by a number of the image (its path), so
        that only the image itself is dropped. So does "cross-camera" if a camera of the domain is unknown.

    Raises:
      ValueError: unknown policy, more than one domain, no query or no gallery.
    """
    if policy not in get_args(CameraPolicy):
        raise ValueError(f"the camera policy must be one of {', '.join(get_args(CameraPolicy))}, not {policy!r}.")
    domains = sorted({record.domain for record in records})
    if len(domains) != 1:
        raise ValueError(f"one domain is evaluated at a time, but the records hold {domains or 'none'}.")

    split = np.array([record.split for record in records])
    in_query, in_gallery = split == "query", split == "gallery"
    if not in_query.any() and not in_gallery.any():
        in_query = in_gallery = (split != "train") | (split == "train").all()
    rows = np.flatnonzero(in_query), np.flatnonzero(in_gallery)
    for name, row in zip(("query", "gallery"), rows, strict=True):
        if row.size == 0:
            raise UserError(f"domain {domains[0]!r} has no {name} image: mark some, or mark none at all.")
    return _labelled(records, rows, policy)


def target_splits(
    target: str, records: Sequence[Record], file: str | Path | None = None, policy: CameraPolicy = "cross-camera"
) -> list[QueryGallery]:
    """The splits of `target`: those of `single_shot_splits` for a small target, else `query_gallery`.

    Raises as these do, and UserError if a file is given for a set with one split.
    """
    if target in SINGLE_SHOT:
        return [_labelled(records, rows) for rows in single_shot_splits(target, records, file)]
    if file is not None:
        raise UserError(f"{file}: {target} has one split, its own query and gallery images; give no file for it.")
    return [query_gallery(records, policy)]


def _labelled(
    records: Sequence[Record], rows: tuple[NDArray, NDArray], policy: CameraPolicy = "cross-camera"
) -> QueryGallery:
    pid, camid = np.array([(record.pid, record.camid) for record in records], np.int64).T
    if policy == "ignore" or (camid < 0).any():
        number = {path: number for number, path in enumerate(dict.fromkeys(record.path for record in records))}
        camid = np.array([number[record.path] for record in records], np.int64)
    return QueryGallery(*rows, *(label[row] for label in (pid, camid) for row in rows))
