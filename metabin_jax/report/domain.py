"""What the page says about one evaluation domain: numbers, scores and ranked lists."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.records import Record
from metabin_jax.evaluation.metrics import metrics_of
from metabin_jax.evaluation.targets import TargetResult
from metabin_jax.evaluation.thresholds import ScoredPairs, score_bins

Mark = Literal["correct", "wrong", "same-camera"]

CMC_RANKS = range(1, 51)
SCORE_BINS = 100
SCORE_EDGES = np.linspace(-1, 1, SCORE_BINS + 1)  # of the cosine similarity
LISTS = 4  # ranked lists per group
LENGTH = 10  # images that count in a ranked list
SAME_CAMERA = 3  # images that do not count and are shown all the same
SEED = 0  # of the random group


class Frame(NamedTuple):
    """An image of a ranked list. rank: None for one that does not count."""

    record: Record
    mark: Mark
    rank: int | None
    distance: float


class RankedList(NamedTuple):
    """A query and what is nearest to it."""

    query: Record
    average_precision: float
    first_rank: int
    frames: list[Frame]


class Domain(NamedTuple):
    """lists: of the first split, by the group's name."""

    result: TargetResult
    lists: dict[str, list[RankedList]]


def examine(result: TargetResult) -> Domain:
    """What the page shows of what `evaluate_target` found with listed=LENGTH and bins=SCORE_BINS."""
    groups = choose_queries(result.metrics[0].average_precision_Q)
    lists = {name: [ranked_list(result, query) for query in group] for name, group in groups.items()}
    return Domain(result, lists)


def cmc(result: TargetResult) -> NDArray[np.float64]:
    """Share of the queries with a match among the first k, for k in CMC_RANKS, mean over the splits; nan without."""
    return np.mean([list(metrics_of(ranking, CMC_RANKS).cmc.values()) for ranking in result.rankings], axis=0)


def choose_queries(average_precision_Q: NDArray) -> dict[str, list[int]]:
    """The queries of each group: LISTS of all that have a match, or fewer; equal ones in the order of the queries."""
    valid = np.flatnonzero(~np.isnan(average_precision_Q))
    by_precision = valid[np.argsort(average_precision_Q[valid], kind="stable")]
    by_precision_down = valid[np.argsort(-average_precision_Q[valid], kind="stable")]
    drawn = np.random.default_rng(SEED).permutation(valid)
    groups = {"random": drawn, "worst": by_precision, "best": by_precision_down}
    return {name: queries[:LISTS].tolist() for name, queries in groups.items()}


def ranked_list(result: TargetResult, query: int) -> RankedList:
    """The LENGTH nearest that count of a query of the first split, and between them the nearest that do not."""
    split, ranking, metrics = result.splits[0], result.rankings[0], result.metrics[0]
    query_row = split.query_row[query]
    frames: list[Frame] = []
    rank = same_camera = 0
    for column, distance in zip(ranking.nearest_QK[query].tolist(), ranking.distance_QK[query].tolist(), strict=True):
        row = split.gallery_row[column]
        if row == query_row:
            continue  # if every image is a query against all, the image itself says nothing
        mark: Mark = "wrong"
        if split.gallery_pid[column] == split.query_pid[query]:
            mark = "same-camera" if split.gallery_camid[column] == split.query_camid[query] else "correct"
        counts = mark != "same-camera"
        rank += counts
        same_camera += not counts
        if counts or same_camera <= SAME_CAMERA:
            frames.append(Frame(result.records[row], mark, rank if counts else None, distance))
        if rank == LENGTH:
            break
    precision, first_rank = float(metrics.average_precision_Q[query]), int(metrics.first_rank_Q[query])
    return RankedList(result.records[query_row], precision, first_rank, frames)


def score_histogram(pairs: ScoredPairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of one identity from two cameras, and of two identities, per bin of their similarity [SCORE_BINS]."""
    return score_bins(pairs.positive.score_P, SCORE_BINS), pairs.negative_B
