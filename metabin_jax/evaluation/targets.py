"""One target's splits, ranked with features that are computed once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.records import Record
from metabin_jax.evaluation import reranking
from metabin_jax.evaluation.distances import Blocks, distance_blocks
from metabin_jax.evaluation.metrics import RetrievalMetrics, metrics_of
from metabin_jax.evaluation.protocol import CameraPolicy, QueryGallery, query_gallery
from metabin_jax.evaluation.ranking import Ranking, most_shared, rank
from metabin_jax.evaluation.thresholds import ScoredPairs, Verification, verify


@dataclass(frozen=True)
class TargetResult:
    """What was measured on a target with these records, split by split.

    split_source: where the splits are from, "" for the domain's own. unmatched: paths of the queries without a match,
    of all splits. rankings: what the metrics are of. pairs: what the verification is about.
    """

    target: str
    records: Sequence[Record]
    split_source: str
    splits: Sequence[QueryGallery]
    rankings: Sequence[Ranking]
    metrics: Sequence[RetrievalMetrics]
    pairs: ScoredPairs
    verification: Verification
    unmatched: Sequence[str]


def evaluate_target(
    target: str,
    records: Sequence[Record],
    embed: Callable[[NDArray[np.int64]], NDArray],
    splits: Sequence[QueryGallery],
    split_source: str = "",
    policy: CameraPolicy = "cross-camera",
    metric: str = "cosine",
    rerank: bool = False,
    query_expansion: int = 0,
    far: float = 1e-3,
    listed: int = 0,
    bins: int = 0,
) -> TargetResult:
    """Ranks every split of `target` once; each image is embedded once.

    Args:
      embed: rows of `records`, int64 [N] -> features [N, D]; called once.
      splits: as `target_splits` returns them.
      policy, far: as in `query_gallery` and `verification`. With several splits, verification is over the pairs of the
        whole domain, because none of its persons was trained on. It always compares the embeddings.
      rerank: rank by the distances of `reranking.rerank`, which are all [Q, G] in memory at once.
      query_expansion: the k of `reranking.query_expansion`, which comes before the ranking or re-ranking; 0 for none.
        Where every image is a query and in the gallery, re-ranking takes the expanded features of both.
      listed: how many images that count the nearest of each query must hold; more are kept, for images that do not.
      bins: as in `scored_pairs`.

    Raises:
      ValueError: as these functions do; a metric other than cosine with re-ranking or query expansion, which know only
        directions.
    """
    if (rerank or query_expansion) and metric != "cosine":
        raise ValueError(f"re-ranking and query expansion need the metric cosine, not {metric!r}.")
    pairs = splits[0] if len(splits) == 1 else query_gallery(records, policy)
    needed = np.unique(np.concatenate([row for split in (*splits, pairs) for row in split[:2]]))
    feature_ND = embed(needed)

    def features(split: QueryGallery) -> tuple[NDArray, NDArray]:
        query, gallery = (np.searchsorted(needed, row) for row in split[:2])
        return _chosen(feature_ND, query), _chosen(feature_ND, gallery)

    def ranking(split: QueryGallery) -> Ranking:
        query_QD, gallery_GD = features(split)
        others_GD = None if np.array_equal(split.query_row, split.gallery_row) else gallery_GD
        if query_expansion:
            query_QD = reranking.query_expansion(query_QD, others_GD, query_expansion)
        blocks: Blocks = distance_blocks(query_QD, gallery_GD, metric)
        if rerank:
            blocks = [(slice(0, len(query_QD)), reranking.rerank(query_QD, others_GD))]
        return rank(blocks, split.labels, listed and listed + most_shared(split.query_pid, split.gallery_pid))

    verification, scored = verify(*features(pairs), pairs.labels, far, bins)
    rankings = [ranking(split) for split in splits]
    metrics = [metrics_of(each) for each in rankings]
    paths = (
        records[split.query_row[query]].path
        for split, measured in zip(splits, metrics, strict=True)
        for query in measured.unmatched
    )
    unmatched = tuple(dict.fromkeys(paths))
    return TargetResult(target, records, split_source, splits, rankings, metrics, scored, verification, unmatched)


def _chosen(feature_ND: NDArray, row: NDArray[np.int64]) -> NDArray:
    """feature_ND[row], without a copy of what may be a gallery of a million if its rows follow each other."""
    return feature_ND[row[0] : row[-1] + 1] if (np.diff(row) == 1).all() else feature_ND[row]
