"""Checks of what all evaluations take: features and labels."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metabin_jax.runtime.errors import UserError

# Rows whose values are looked at together, so that no mask of the features' size is made.
_CHUNK_ROWS = 4096


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
        starts = range(0, len(feature_ND), _CHUNK_ROWS)
        finite = [np.isfinite(feature_ND[start : start + _CHUNK_ROWS]).all(axis=1) for start in starts]
        bad = np.flatnonzero(~np.concatenate(finite)) if finite else np.array([])
        if bad.size:
            raise UserError(f"the feature of {name} {bad[0]} is not finite ({bad.size} such rows): check the weights.")
    return query_QD, gallery_GD


@dataclass(frozen=True)
class Labels:
    """Integers [Q] and [G]; see `metabin_jax.evaluation.metrics` for what they mean."""

    query_pid: NDArray
    gallery_pid: NDArray
    query_camid: NDArray
    gallery_camid: NDArray

    @classmethod
    def check(cls, labels: Sequence[ArrayLike], num_query: int, num_gallery: int) -> "Labels":
        """The four labels, in the order of the fields, as arrays.

        Raises:
          ValueError: a shape is not [num_query] or [num_gallery]; labels are not integers.
        """
        checked = cls(*map(np.asarray, labels))
        for name, expected in (("query", num_query), ("gallery", num_gallery)):
            for kind in ("pid", "camid"):
                value = getattr(checked, f"{name}_{kind}")
                if value.shape != (expected,):
                    raise ValueError(f"{name}_{kind} must have the shape [{expected}], not {list(value.shape)}.")
                if expected and not np.issubdtype(value.dtype, np.integer):
                    raise ValueError(f"{name}_{kind} must hold integers, not {value.dtype}.")
        return checked

    def same_identity(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The gallery images of the query's identity [S], in the gallery's order, and which are from other cameras."""
        order_G, first_Q, last_Q = self._by_pid
        column_S = order_G[first_Q[query] : last_Q[query]]
        return column_S, self.gallery_camid[column_S] != self.query_camid[query]

    @property
    def count_Q(self) -> NDArray[np.int64]:
        """The number of gallery images of each query's identity."""
        _, first_Q, last_Q = self._by_pid
        return last_Q - first_Q

    @functools.cached_property
    def _by_pid(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The gallery's order by pid [G], and where each query's identity is in it [Q]: first, and after the last."""
        order_G = np.argsort(self.gallery_pid, kind="stable")
        pid_G = self.gallery_pid[order_G]
        return order_G, np.searchsorted(pid_G, self.query_pid, "left"), np.searchsorted(pid_G, self.query_pid, "right")
