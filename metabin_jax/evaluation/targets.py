"""One target's splits, ranked with features that are computed once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.records import Record
from metabin_jax.evaluation.metrics import RetrievalMetrics, metrics_of
from metabin_jax.evaluation.protocol import CameraPolicy, QueryGallery, query_gallery, ranking
from metabin_jax.evaluation.ranking import Ranking
from metabin_jax.evaluation.thresholds import ScoredPairs, Verification, verify


@dataclass(frozen=True)
class TargetResult:
    """What was measured on a target, split by split.

    split_source: where the splits are from, "" for the domain's own. unmatched: paths of the queries without a match,
    of all splits. rankings: what the metrics are of. pairs: what the verification is about.
    """

    target: str
    split_source: str
    splits: tuple[QueryGallery, ...]
    rankings: tuple[Ranking, ...]
    metrics: tuple[RetrievalMetrics, ...]
    pairs: ScoredPairs
    verification: Verification
    unmatched: tuple[str, ...]


def evaluate_target(
    target: str,
    records: Sequence[Record],
    embed: Callable[[NDArray[np.int64]], NDArray],
    splits: Sequence[QueryGallery],
    split_source: str = "",
    policy: CameraPolicy = "cross-camera",
    far: float = 1e-3,
    ranks: Sequence[int] = (1, 5, 10),
    bins: int = 0,
    **steps: Any,
) -> TargetResult:
    """Ranks every split of `target` once; each image is embedded once.

    Args:
      embed: rows of `records`, int64 [N] -> features [N, D]; called once.
      splits: as `target_splits` returns them.
      far, policy: as in `verification` and `query_gallery`. With several splits, verification is over the pairs of the
        whole domain, because none of its persons was trained on. Whatever is done for the ranking, it compares the
        embeddings.
      ranks, bins: as in `metrics_of` and `scored_pairs`.
      steps: metric, rerank, query_expansion and listed, as in `ranking`.

    Raises:
      ValueError: as these functions do.
    """
    pairs = splits[0] if len(splits) == 1 else query_gallery(records, policy)
    needed = np.unique(np.concatenate([row for split in (*splits, pairs) for row in split[:2]]))
    feature_ND = embed(needed)

    def features(split: QueryGallery) -> tuple[NDArray, NDArray]:
        query, gallery = (np.searchsorted(needed, row) for row in (split.query_row, split.gallery_row))
        return _chosen(feature_ND, query), _chosen(feature_ND, gallery)

    verified, scored = verify(*features(pairs), pairs.labels, far, bins)
    rankings = tuple(ranking(*features(split), split, **steps) for split in splits)
    metrics = tuple(metrics_of(each, ranks) for each in rankings)
    unmatched = dict.fromkeys(
        records[split.query_row[query]].path
        for split, measured in zip(splits, metrics, strict=True)
        for query in measured.unmatched
    )
    return TargetResult(target, split_source, tuple(splits), rankings, metrics, scored, verified, tuple(unmatched))


def _chosen(feature_ND: NDArray, row: NDArray[np.int64]) -> NDArray:
    """feature_ND[row], without a copy of what may be a gallery of a million if its rows follow each other."""
    return feature_ND[row[0] : row[-1] + 1] if (np.diff(row) == 1).all() else feature_ND[row]
