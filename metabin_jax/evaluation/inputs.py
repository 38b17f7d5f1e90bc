"""Checks of what all evaluations take: features and labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metabin_jax.runtime.errors import UserError


def check_features(query_QD: ArrayLike, gallery_GD: ArrayLike) -> tuple[NDArray, NDArray]:
    """The features as arrays.

    Raises:
      ValueError: they are not two matrices of one width; a feature is not finite.
    """
    query_QD, gallery_GD = np.asarray(query_QD), np.asarray(gallery_GD)
    if query_QD.ndim != 2 or gallery_GD.ndim != 2 or query_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(
            "features must have the shapes [queries, D] and [gallery, D] with one D, "
            f"not {list(query_QD.shape)} and {list(gallery_GD.shape)}."
        )
    for name, feature_ND in (("query", query_QD), ("gallery", gallery_GD)):
        # Extremes need no mask of the features' size; NaN is both.
        extremes = (extreme(axis=1, initial=0) for extreme in (feature_ND.min, feature_ND.max))
        bad = np.flatnonzero(~np.logical_and(*map(np.isfinite, extremes)))
        if bad.size:
            raise UserError(f"the feature of {name} {bad[0]} is not finite ({bad.size} such rows): check the weights.")
    return query_QD, gallery_GD


class Labels(NamedTuple):
    """Integers [Q] and [G]; see `metabin_jax.evaluation.metrics` for what they mean."""

    query_pid: NDArray
    gallery_pid: NDArray
    query_camid: NDArray
    gallery_camid: NDArray


def check_labels(labels: Sequence[ArrayLike], num_query: int, num_gallery: int) -> Labels:
    """The labels, in the order of `Labels`, as arrays.

    Raises:
      ValueError: a shape is not [num_query] or [num_gallery]; labels are not integers.
    """
    checked = Labels._make(map(np.asarray, labels))
    for name, value in checked._asdict().items():
        expected = num_query if name.startswith("query") else num_gallery
        if value.shape != (expected,):
            raise ValueError(f"{name} must have the shape [{expected}], not {list(value.shape)}.")
        if expected and not np.issubdtype(value.dtype, np.integer):
            raise ValueError(f"{name} must hold integers, not {value.dtype}.")
    return checked
