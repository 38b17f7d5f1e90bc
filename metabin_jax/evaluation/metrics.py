"""Retrieval metrics under the Market-1501 protocol (Zheng et al., ICCV 2015).

A query's ranked list is the gallery by increasing distance, without the images that show the query's identity
from the query's camera; equal distances keep the order of the gallery. A match is an image of the query's
identity in that list. A query without a match has no rank: it is left out of every mean and named.

All metrics are fractions in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metabin_jax.evaluation.distances import distance_blocks
from metabin_jax.evaluation.inputs import check_features, check_labels
from metabin_jax.evaluation.ranking import Ranking, rank


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
      first_rank_Q, average_precision_Q, inverse_penalty_Q: what the means are of, float64 [Q]: the rank, from 1, of
        each query's first match, its average precision and its inverse negative penalty; nan without a match.
    """

    cmc: dict[int, float]
    mAP: float
    mINP: float
    num_valid: int
    unmatched: tuple[int, ...]
    first_rank_Q: NDArray[np.float64] = field(repr=False, compare=False)
    average_precision_Q: NDArray[np.float64] = field(repr=False, compare=False)
    inverse_penalty_Q: NDArray[np.float64] = field(repr=False, compare=False)


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
    labels = check_labels((query_pid, gallery_pid, query_camid, gallery_camid), *distance_QG.shape)
    return metrics_of(rank([(slice(0, len(distance_QG)), distance_QG)], labels), ranks)


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
    query_QD, gallery_GD = check_features(query_QD, gallery_GD)
    labels = check_labels((query_pid, gallery_pid, query_camid, gallery_camid), len(query_QD), len(gallery_GD))
    return metrics_of(rank(distance_blocks(query_QD, gallery_GD, metric), labels), ranks)


def metrics_of(ranking: Ranking, ranks: Sequence[int] = (1, 5, 10)) -> RetrievalMetrics:
    """The metrics of a ranking that was given labels. Raises ValueError for a rank below 1."""
    if any(k < 1 for k in ranks):
        raise ValueError(f"ranks must be at least 1, not {list(ranks)}.")
    query_M, rank_M, num_query = ranking.query_M, ranking.rank_M, len(ranking.nearest_QK)
    count_Q = np.bincount(query_M, minlength=num_query)
    valid_Q = count_Q > 0
    last_M = np.cumsum(count_Q)[valid_Q] - 1
    first_M = last_M + 1 - count_Q[valid_Q]
    matches_so_far_M = np.arange(1, len(query_M) + 1) - np.repeat(first_M, count_Q[valid_Q])

    first_Q, average_precision_Q, inverse_penalty_Q = np.full((3, num_query), np.nan)
    first_Q[valid_Q] = rank_M[first_M]
    precision_sum_Q = np.bincount(query_M, weights=matches_so_far_M / rank_M, minlength=num_query)
    average_precision_Q[valid_Q] = precision_sum_Q[valid_Q] / count_Q[valid_Q]
    inverse_penalty_Q[valid_Q] = count_Q[valid_Q] / rank_M[last_M]

    def mean(value_Q: NDArray) -> float:
        return float(value_Q[valid_Q].mean()) if valid_Q.any() else float("nan")

    return RetrievalMetrics(
        cmc={int(k): mean(first_Q <= k) for k in ranks},
        mAP=mean(average_precision_Q),
        mINP=mean(inverse_penalty_Q),
        num_valid=int(valid_Q.sum()),
        unmatched=tuple(np.flatnonzero(~valid_Q).tolist()),
        first_rank_Q=first_Q,
        average_precision_Q=average_precision_Q,
        inverse_penalty_Q=inverse_penalty_Q,
    )
