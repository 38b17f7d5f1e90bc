"""Retrieval metrics under the Market-1501 protocol (Zheng et al., ICCV 2015), on the host.

A query's ranked list is the gallery by increasing distance, without the images that show the query's identity
from the query's camera; equal distances keep the order of the gallery. A match is an image of the query's
identity in that list. A query without a match has no rank: it is left out of every mean and named.

All metrics are fractions in [0, 1].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

METRICS = ("cosine", "euclidean")

# The largest temporary array, the int64 sorting order of a block of queries, stays below 64 MB.
_BLOCK_ELEMENTS = 8_000_000


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries that have a match; nan where no query has one.

    Attributes:
      cmc: rank k -> share of queries with a match among the first k of their list.
      mAP: mean over queries of the average precision, which is the mean of the precision at each match (no
        interpolation).
      mINP: mean over queries of the inverse negative penalty, which is the number of matches divided by the
        rank of the last one (Ye et al., TPAMI 2021, arXiv 2001.04193).
      num_valid: the number of queries that have a match.
      unmatched: indices of the queries that have none.
    """

    cmc: dict[int, float]
    mAP: float
    mINP: float
    num_valid: int
    unmatched: tuple[int, ...]


def distance(query_QD: NDArray, gallery_GD: NDArray, metric: str = "cosine") -> NDArray:
    """Distances [Q, G] in float32, or float64 where the features are: 1 - cosine, or Euclidean (not squared).

    A feature of length zero has the cosine distance 1 to everything.
    """
    dtype = np.result_type(query_QD, gallery_GD, np.float32)
    query_QD, gallery_GD = query_QD.astype(dtype, copy=False), gallery_GD.astype(dtype, copy=False)
    if metric == "cosine":
        return 1 - _unit_length(query_QD) @ _unit_length(gallery_GD).T
    if metric == "euclidean":
        squared_QG = np.square(query_QD).sum(1)[:, None] + np.square(gallery_GD).sum(1) - 2 * query_QD @ gallery_GD.T
        return np.sqrt(np.maximum(squared_QG, 0))
    raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}.")


def _unit_length(feature_ND: NDArray) -> NDArray:
    length_N1 = np.linalg.norm(feature_ND, axis=1, keepdims=True)
    return feature_ND / np.where(length_N1 == 0, 1, length_N1)


def rank_metrics(
    distance_QG: ArrayLike,
    query_pid: ArrayLike,
    gallery_pid: ArrayLike,
    query_camid: ArrayLike,
    gallery_camid: ArrayLike,
    ranks: Sequence[int] = (1, 5, 10),
) -> RetrievalMetrics:
    """Ranks the gallery by `distance_QG` [Q, G]; see the module's docstring for the protocol.

    Args:
      distance_QG: any real dtype, smaller is nearer.
      query_pid, query_camid: any integers [Q].
      gallery_pid, gallery_camid: any integers [G].
      ranks: the k of CMC@k; k may exceed G.

    Raises:
      ValueError: shapes disagree, labels are not integers, a distance is NaN, a rank is below 1.
    """
    distance_QG = np.asarray(distance_QG)
    if distance_QG.ndim != 2:
        raise ValueError(f"distance_QG must have the shape [queries, gallery], not {list(distance_QG.shape)}.")
    labels = _Labels.check(query_pid, gallery_pid, query_camid, gallery_camid, *distance_QG.shape)
    return _evaluate(lambda rows: distance_QG[rows], labels, ranks)


def retrieval_metrics(
    query_QD: ArrayLike,
    gallery_GD: ArrayLike,
    query_pid: ArrayLike,
    gallery_pid: ArrayLike,
    query_camid: ArrayLike,
    gallery_camid: ArrayLike,
    metric: str = "cosine",
    ranks: Sequence[int] = (1, 5, 10),
) -> RetrievalMetrics:
    """`rank_metrics` from features, without ever holding the whole distance matrix.

    Args:
      query_QD, gallery_GD: features, any real dtype, of finite values.
      metric: "cosine" or "euclidean".
      The rest as in `rank_metrics`.

    Raises:
      ValueError: as `rank_metrics`; unknown metric; a feature is not finite.
    """
    query_QD, gallery_GD = np.asarray(query_QD), np.asarray(gallery_GD)
    if query_QD.ndim != 2 or gallery_GD.ndim != 2 or query_QD.shape[1] != gallery_GD.shape[1]:
        raise ValueError(
            "features must have the shapes [queries, D] and [gallery, D] with one D, "
            f"not {list(query_QD.shape)} and {list(gallery_GD.shape)}."
        )
    for name, feature_ND in (("query", query_QD), ("gallery", gallery_GD)):
        bad = np.flatnonzero(~np.isfinite(feature_ND).all(axis=1))
        if bad.size:
            raise ValueError(f"the feature of {name} {bad[0]} is not finite ({bad.size} such rows): check the weights.")
    labels = _Labels.check(query_pid, gallery_pid, query_camid, gallery_camid, len(query_QD), len(gallery_GD))
    return _evaluate(lambda rows: distance(query_QD[rows], gallery_GD, metric), labels, ranks)


@dataclass(frozen=True)
class _Labels:
    query_pid: NDArray
    gallery_pid: NDArray
    query_camid: NDArray
    gallery_camid: NDArray

    @classmethod
    def check(
        cls,
        query_pid: ArrayLike,
        gallery_pid: ArrayLike,
        query_camid: ArrayLike,
        gallery_camid: ArrayLike,
        num_query: int,
        num_gallery: int,
    ) -> "_Labels":
        labels = cls(*map(np.asarray, (query_pid, gallery_pid, query_camid, gallery_camid)))
        for name, expected in (("query", num_query), ("gallery", num_gallery)):
            for kind in ("pid", "camid"):
                value = getattr(labels, f"{name}_{kind}")
                if value.shape != (expected,):
                    raise ValueError(f"{name}_{kind} must have the shape [{expected}], not {list(value.shape)}.")
                if expected and not np.issubdtype(value.dtype, np.integer):
                    raise ValueError(f"{name}_{kind} must hold integers, not {value.dtype}.")
        return labels


def _evaluate(distance_of: Callable[[slice], NDArray], labels: _Labels, ranks: Sequence[int]) -> RetrievalMetrics:
    if any(k < 1 for k in ranks):
        raise ValueError(f"ranks must be at least 1, not {list(ranks)}.")
    num_query = len(labels.query_pid)
    first_Q, average_precision_Q, inverse_penalty_Q = np.full((3, num_query), np.nan)
    for rows in _query_blocks(num_query, len(labels.gallery_pid)):
        block = _rank_block(distance_of(rows), rows, labels)
        first_Q[rows], average_precision_Q[rows], inverse_penalty_Q[rows] = block
    valid_Q = ~np.isnan(first_Q)

    def mean(value_Q: NDArray) -> float:
        return float(value_Q[valid_Q].mean()) if valid_Q.any() else float("nan")

    return RetrievalMetrics(
        cmc={int(k): mean(first_Q <= k) for k in ranks},
        mAP=mean(average_precision_Q),
        mINP=mean(inverse_penalty_Q),
        num_valid=int(valid_Q.sum()),
        unmatched=tuple(np.flatnonzero(~valid_Q).tolist()),
    )


def _query_blocks(num_query: int, num_gallery: int) -> Iterator[slice]:
    size = max(1, _BLOCK_ELEMENTS // max(num_gallery, 1))
    for start in range(0, num_query, size):
        yield slice(start, min(start + size, num_query))


def _rank_block(distance_BG: NDArray, rows: slice, labels: _Labels) -> tuple[NDArray, NDArray, NDArray]:
    """Rank of the first match, average precision and inverse negative penalty [B]; nan without a match."""
    bad = np.flatnonzero(np.isnan(distance_BG).any(axis=1))
    if bad.size:
        raise ValueError(f"distance_QG holds NaN for query {rows.start + bad[0]}: check the features.")
    order_BG = np.argsort(distance_BG, axis=1, kind="stable")
    same_pid_BG = labels.gallery_pid[order_BG] == labels.query_pid[rows, None]
    same_camid_BG = labels.gallery_camid[order_BG] == labels.query_camid[rows, None]
    dropped_BG = same_pid_BG & same_camid_BG

    # Matches are few: from here on only they are visited, ordered by query and, within a query, by rank.
    query_M, column_M = np.nonzero(same_pid_BG & ~same_camid_BG)
    rank_M = column_M + 1 - np.cumsum(dropped_BG, axis=1, dtype=np.int32)[query_M, column_M]
    count_B = np.bincount(query_M, minlength=len(distance_BG))
    matched_B = count_B > 0
    last_M = np.cumsum(count_B)[matched_B] - 1
    first_M = last_M + 1 - count_B[matched_B]
    matches_so_far_M = np.arange(1, len(query_M) + 1) - np.repeat(first_M, count_B[matched_B])

    first_B, average_precision_B, inverse_penalty_B = np.full((3, len(distance_BG)), np.nan)
    first_B[matched_B] = rank_M[first_M]
    precision_sum_B = np.bincount(query_M, weights=matches_so_far_M / rank_M, minlength=len(distance_BG))
    average_precision_B[matched_B] = precision_sum_B[matched_B] / count_B[matched_B]
    inverse_penalty_B[matched_B] = count_B[matched_B] / rank_M[last_M]
    return first_B, average_precision_B, inverse_penalty_B
