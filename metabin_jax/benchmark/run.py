"""One target's splits, ranked with features that are computed once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metabin_jax.benchmark.splits import split_source, target_splits
from metabin_jax.data.records import Record
from metabin_jax.evaluation.metrics import RetrievalMetrics, retrieval_metrics
from metabin_jax.evaluation.protocol import CameraPolicy, QueryGallery


@dataclass(frozen=True)
class TargetResult:
    """What was measured on a target, split by split; `split_source` says where the splits are from."""

    target: str
    split_source: str
    splits: tuple[QueryGallery, ...]
    metrics: tuple[RetrievalMetrics, ...]


def evaluate_target(
    target: str,
    records: Sequence[Record],
    embed: Callable[[NDArray[np.int64]], NDArray],
    file: str | Path | None = None,
    metric: str = "cosine",
    policy: CameraPolicy = "cross-camera",
) -> TargetResult:
    """Ranks every split of `target`; each image that any of them needs is embedded once.

    Args:
      embed: rows of `records`, int64 [N] -> features [N, D]; called once.
      The rest as in `target_splits` and `retrieval_metrics`.

    Raises:
      ValueError, FileNotFoundError: as those two.
    """
    splits = target_splits(target, records, file, policy)
    needed = np.unique(np.concatenate([np.concatenate([split.query_row, split.gallery_row]) for split in splits]))
    feature_ND = embed(needed)
    metrics = [
        retrieval_metrics(
            feature_ND[np.searchsorted(needed, split.query_row)],
            feature_ND[np.searchsorted(needed, split.gallery_row)],
            *split[2:],
            metric=metric,
        )
        for split in splits
    ]
    return TargetResult(target, split_source(target, file), tuple(splits), tuple(metrics))
