"""What the page says about one evaluation domain: numbers, scores and ranked lists."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from metabin_jax.data.records import Record
from metabin_jax.evaluation import QueryGallery, RetrievalMetrics, distance, query_expansion, query_gallery, rerank
from metabin_jax.evaluation.metrics import distance_blocks
from metabin_jax.evaluation.targets import TargetResult, evaluate_target

Mark = Literal["correct", "wrong", "same-camera"]

CMC_RANKS = range(1, 51)
SCORE_BINS = 100  # over [-1, 1]
LISTS = 4  # ranked lists per group
LENGTH = 10  # images that count in a ranked list
SAME_CAMERA = 3  # images that do not count and are shown all the same
SEED = 0  # of the random group


class Frame(NamedTuple):
    """An image of a ranked list. rank: None for one that does not count."""

    row: int
    record: Record
    mark: Mark
    rank: int | None
    distance: float


class RankedList(NamedTuple):
    """A query and what is nearest to it. row: of the query, among the domain's records, as in Frame."""

    row: int
    query: Record
    average_precision: float
    first_rank: int
    frames: list[Frame]


class ScoreHistogram(NamedTuple):
    """Numbers of pairs per bin of their cosine similarity, int64 [SCORE_BINS]; edges [SCORE_BINS + 1]."""

    edges: NDArray[np.float64]
    matches: NDArray[np.int64]
    others: NDArray[np.int64]


@dataclass(frozen=True)
class Domain:
    """scores: of the pairs that result.verification is about. lists: of the first split, by the group's name."""

    result: TargetResult
    scores: ScoreHistogram
    lists: dict[str, list[RankedList]]


def examine(
    own: Sequence[Record],
    embed: Callable[[NDArray[np.int64]], NDArray],
    splits: Sequence[QueryGallery],
    split_source: str,
    settings: ConfigDict,
) -> Domain:
    """Evaluates one domain by `evaluate_target`, and looks at it more closely.

    Args:
      own: the domain's records.
      embed: rows of `own`, int64 [N] -> features [N, D]; called once.
      splits, split_source: as `metabin_jax.evaluate.domain_splits` returns them.
      settings: config.eval.

    Raises:
      ValueError: as `evaluate_target`.
    """
    pairs = splits[0] if len(splits) == 1 else query_gallery(own, settings.policy)
    needed = np.unique(np.concatenate([row for split in (*splits, pairs) for row in split[:2]]))
    feature_ND = embed(needed)

    def features(rows: NDArray[np.int64]) -> NDArray:
        return feature_ND[np.searchsorted(needed, rows)]

    result = evaluate_target(
        own[0].domain, own, features, splits, split_source, policy=settings.policy, far=settings.far,
        metric=settings.metric, rerank=settings.rerank, query_expansion=settings.query_expansion,
    )  # fmt: skip
    scores = score_histogram(features(pairs.query_row), features(pairs.gallery_row), pairs)

    split, metrics = splits[0], result.metrics[0]
    groups = choose_queries(metrics.average_precision_Q)
    queries = np.array(sorted({query for group in groups.values() for query in group}), np.int64)
    query_QD, gallery_GD = features(split.query_row), features(split.gallery_row)
    if settings.query_expansion:
        query_QD = query_expansion(query_QD, gallery_GD, settings.query_expansion)
    if settings.rerank:
        distance_LG = rerank(query_QD, gallery_GD)[queries]
    else:
        distance_LG = distance(query_QD[queries], gallery_GD, settings.metric)
    list_of = {
        query: ranked_list(own, split, metrics, query, distance_G)
        for query, distance_G in zip(queries.tolist(), distance_LG, strict=True)
    }
    return Domain(result, scores, {name: [list_of[query] for query in group] for name, group in groups.items()})


def cmc(result: TargetResult) -> NDArray[np.float64]:
    """Share of the queries with a match among the first k, for k in CMC_RANKS, mean over the splits; nan without."""
    curves = []
    for metrics in result.metrics:
        first = metrics.first_rank_Q[~np.isnan(metrics.first_rank_Q)]
        curves.append([(first <= k).mean() if len(first) else np.nan for k in CMC_RANKS])
    return np.mean(curves, axis=0)


def choose_queries(average_precision_Q: NDArray) -> dict[str, list[int]]:
    """The queries of each group: LISTS of all that have a match, or fewer; equal ones in the order of the queries."""
    valid = np.flatnonzero(~np.isnan(average_precision_Q))
    by_precision = valid[np.argsort(average_precision_Q[valid], kind="stable")]
    by_precision_down = valid[np.argsort(-average_precision_Q[valid], kind="stable")]
    drawn = np.random.default_rng(SEED).permutation(valid)
    groups = {"random": drawn, "worst": by_precision, "best": by_precision_down}
    return {name: queries[:LISTS].tolist() for name, queries in groups.items()}


def ranked_list(
    own: Sequence[Record], split: QueryGallery, metrics: RetrievalMetrics, query: int, distance_G: NDArray
) -> RankedList:
    """The LENGTH nearest that count of a query, and between them the nearest that do not."""
    row = int(split.query_row[query])
    frames: list[Frame] = []
    rank = same_camera = 0
    for column in np.argsort(distance_G, kind="stable").tolist():
        gallery_row = int(split.gallery_row[column])
        if gallery_row == row:
            continue  # every image is a query against all: the image itself says nothing
        mark = _mark(split, query, column)
        if mark == "same-camera":
            same_camera += 1
            if same_camera > SAME_CAMERA:
                continue
        else:
            rank += 1
        counted = None if mark == "same-camera" else rank
        frames.append(Frame(gallery_row, own[gallery_row], mark, counted, float(distance_G[column])))
        if rank == LENGTH:
            break
    return RankedList(
        row, own[row], float(metrics.average_precision_Q[query]), int(metrics.first_rank_Q[query]), frames
    )


def _mark(split: QueryGallery, query: int, column: int) -> Mark:
    if split.gallery_pid[column] != split.query_pid[query]:
        return "wrong"
    return "same-camera" if split.gallery_camid[column] == split.query_camid[query] else "correct"


def score_histogram(query_QD: NDArray, gallery_GD: NDArray, split: QueryGallery) -> ScoreHistogram:
    """Of the pairs that `verification` counts: one identity from two cameras, and two identities."""
    matches, others = np.zeros((2, SCORE_BINS), np.int64)
    for rows, distance_BG in distance_blocks(query_QD, gallery_GD):
        for query, distance_G in enumerate(distance_BG, rows.start):
            # Rounding takes scores a little beyond [-1, 1].
            bin_G = np.clip((2 - distance_G) * (SCORE_BINS / 2), 0, SCORE_BINS - 1).astype(np.int64)
            same_pid_G = split.gallery_pid == split.query_pid[query]
            match_G = same_pid_G & (split.gallery_camid != split.query_camid[query])
            matches += np.bincount(bin_G[match_G], minlength=SCORE_BINS)
            others += np.bincount(bin_G[~same_pid_G], minlength=SCORE_BINS)
    return ScoreHistogram(np.linspace(-1, 1, SCORE_BINS + 1), matches, others)
