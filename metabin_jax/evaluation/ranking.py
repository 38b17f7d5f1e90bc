"""One ranking of a gallery for every query: what metrics, re-ranking, search and ranked lists read."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metabin_jax.evaluation.distances import Blocks
from metabin_jax.evaluation.inputs import Labels

# Up to this number of images, counting what is nearer than each takes less time than sorting the gallery.
_FEW_IMAGES = 256


@dataclass(frozen=True)
class Ranking:
    """What is kept of the gallery's order by distance; equal distances keep the order of the gallery.

    Attributes:
      nearest_QK: int64 [Q, K], the columns of each query's K nearest images.
      distance_QK: their distances.
      query_M, rank_M: int32 [M], the matches of all queries, query by query in ranked order, and the rank of each, from
        1, in its query's list. The images of a query's identity from its own camera are not in that list.
    """

    nearest_QK: NDArray[np.int64]
    distance_QK: NDArray
    query_M: NDArray[np.int32]
    rank_M: NDArray[np.int32]


def rank(blocks: Blocks, labels: Labels | None = None, nearest: int = 0) -> Ranking:
    """Goes once through all distances.

    Args:
      blocks: as `distances.distance_blocks` yields them, smaller is nearer.
      labels: which images are of one identity and camera; None finds only the nearest.
      nearest: the K that is asked for; fewer are kept of a smaller gallery.

    Raises:
      ValueError: a distance is NaN.
    """
    nearest_columns, nearest_distances, ranks, num_query = [], [], [], 0
    same_pid = images_of(labels.query_pid, labels.gallery_pid) if labels else iter(())
    for rows, distance_BG in blocks:
        for query, distance_G in enumerate(distance_BG, rows.start):
            if np.isnan(distance_G).any():
                raise ValueError(f"distance_QG holds NaN for query {query}: check the features.")
            if labels:
                column_S = next(same_pid)
                is_match_S = labels.gallery_camid[column_S] != labels.query_camid[query]
                ranks.append(_match_ranks(distance_G, column_S, is_match_S))
            if nearest:
                nearest_columns.append(_nearest(distance_G, nearest))
                nearest_distances.append(distance_G[nearest_columns[-1]])
        num_query = rows.stop
    return Ranking(
        np.stack(nearest_columns) if nearest_columns else np.empty((num_query, 0), np.int64),
        np.stack(nearest_distances) if nearest_distances else np.empty((num_query, 0)),
        np.repeat(np.arange(len(ranks), dtype=np.int32), [len(rank_M) for rank_M in ranks]),
        np.concatenate([np.empty(0, np.int32), *ranks]),
    )


def images_of(query_pid: NDArray, gallery_pid: NDArray) -> Iterator[NDArray[np.int64]]:
    """For each query, the gallery images of its identity, in the gallery's order."""
    order_G = np.argsort(gallery_pid, kind="stable")
    pid_G = gallery_pid[order_G]
    first_Q, last_Q = (np.searchsorted(pid_G, query_pid, side) for side in ("left", "right"))
    return (order_G[first:last] for first, last in zip(first_Q, last_Q, strict=True))


def most_shared(query_Q: NDArray, gallery_G: NDArray) -> int:
    """The largest number of gallery entries that are equal to one of the queries' entries."""
    values, counts = np.unique(gallery_G, return_counts=True)
    return int(counts[np.isin(values, query_Q)].max(initial=0))


def _nearest(distance_G: NDArray, k: int) -> NDArray[np.int64]:
    """The columns of the k smallest distances, increasing; equal distances keep their order."""
    if k < len(distance_G):
        # All that are as near as the k-th: which of them come first is for the stable sort to say.
        column_C = np.flatnonzero(distance_G <= np.partition(distance_G, k - 1)[k - 1])
    else:
        column_C = np.arange(len(distance_G))
    return column_C[np.argsort(distance_G[column_C], kind="stable")][:k]


def _match_ranks(distance_G: NDArray, column_S: NDArray[np.int64], is_match_S: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The ranks of a query's matches, from 1, increasing; column_S: all images of its identity."""
    place_S = _places(distance_G, column_S)
    order_S = np.argsort(place_S)
    place_S, is_match_S = place_S[order_S], is_match_S[order_S]
    return (place_S - np.cumsum(~is_match_S))[is_match_S].astype(np.int32)


def _places(distance_G: NDArray, column_S: NDArray) -> NDArray[np.int64]:
    """The places, from 1, of these columns in the stable order of all."""
    if len(column_S) > _FEW_IMAGES:
        place_G = np.empty(len(distance_G), np.int64)
        place_G[np.argsort(distance_G, kind="stable")] = np.arange(1, len(distance_G) + 1)
        return place_G[column_S]
    # What is equally far counts only up to the column itself, which is its own place 1.
    return np.array(
        [
            np.count_nonzero(distance_G[: column + 1] <= distance_G[column])
            + np.count_nonzero(distance_G[column + 1 :] < distance_G[column])
            for column in column_S.tolist()
        ],
        np.int64,
    )
