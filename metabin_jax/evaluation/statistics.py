"""From the queries of every split of every target to means, deviations and 95 % intervals.

The splits of a target show the same persons again and again (each of VIPeR's is tested in about half of them), so ten
splits are not ten times the evidence. An interval therefore comes from resampling persons, each with all its queries in
all splits, and, independently, splits (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007); it errs on
the wide side. Resampling each split's queries as if they were always other persons would make it too narrow by half.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabin_jax.evaluation.metrics import RetrievalMetrics
from metabin_jax.evaluation.targets import TargetResult

RANKS = (1, 5, 10)
METRICS = ("R-1", "R-5", "R-10", "mAP", "mINP")
RESAMPLES = 2000
SEED = 0
MEAN = "mean"  # the name of what is over all targets


class Estimate(NamedTuple):
    """Fractions. std: over the splits, ddof 1, None without two; low, high: the 95 % interval."""

    mean: float
    std: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Of a target, or of all (`MEAN`). queries, unmatched: over all splits, with and without a match."""

    name: str
    split_source: str
    splits: int
    queries: int
    unmatched: int
    estimates: dict[str, Estimate]


def summarise(results: Sequence[TargetResult]) -> list[Summary]:
    """One summary per target and, for more than one, the mean of the targets' means.

    A target's mean is that of its splits' means, which are over the queries with a match; nan where a split has none.
    A target's interval does not depend on which others are there. Raises ValueError for no or repeated targets.
    """
    targets = [result.target for result in results]
    if not targets or len(set(targets)) < len(targets):
        raise ValueError(f"give the results of one or more targets, each once, not {targets}.")
    mean_TSM = [
        np.array([[*(m.cmc[rank] for rank in RANKS), m.mAP, m.mINP] for m in result.metrics]) for result in results
    ]
    draws_TBM = np.stack([resampled(result) for result in results])
    counts, summaries = [], []  # counts: of splits, queries with a match, queries without
    for result, mean_SM, draws_BM in zip(results, mean_TSM, draws_TBM, strict=True):
        valid = sum(metrics.num_valid for metrics in result.metrics)
        counts.append((len(mean_SM), valid, sum(len(metrics.unmatched) for metrics in result.metrics)))
        estimates = _estimates(mean_SM.mean(0), mean_SM.std(0, ddof=1) if len(mean_SM) > 1 else None, draws_BM)
        summaries.append(Summary(result.target, result.split_source, *counts[-1], estimates))
    if len(summaries) > 1:
        estimates = _estimates(np.mean([mean_SM.mean(0) for mean_SM in mean_TSM], axis=0), None, draws_TBM.mean(0))
        splits, queries, unmatched = map(sum, zip(*counts, strict=True))
        summaries.append(Summary(MEAN, "", splits, queries, unmatched, estimates))
    return summaries


def _query_values(metrics: RetrievalMetrics) -> NDArray[np.float64]:
    """What the means are of: float64 [Q, METRICS], nan for a query without a match."""
    first_Q = metrics.first_rank_Q
    hits = [np.where(np.isnan(first_Q), np.nan, first_Q <= rank) for rank in RANKS]
    return np.stack([*hits, metrics.average_precision_Q, metrics.inverse_penalty_Q], axis=1)


def resampled(result: TargetResult) -> NDArray[np.float64]:
    """The target's means in RESAMPLES draws of persons and splits: float64 [B, METRICS]."""
    num_splits = len(result.metrics)
    value_QM = np.concatenate([_query_values(metrics) for metrics in result.metrics])
    pid_Q = np.concatenate([split.query_pid for split in result.splits])
    split_Q = np.repeat(np.arange(num_splits), [len(split.query_pid) for split in result.splits])
    valid_Q = ~np.isnan(value_QM[:, 0])
    draws_BM = np.full((RESAMPLES, len(METRICS)), np.nan)
    if len(np.unique(split_Q[valid_Q])) < num_splits:
        return draws_BM
    persons, person_Q = np.unique(pid_Q[valid_Q], return_inverse=True)
    # Per person and split the sums over its queries, and in the last column their number.
    sum_PSM = np.zeros((len(persons), num_splits, len(METRICS) + 1))
    np.add.at(sum_PSM, (person_Q, split_Q[valid_Q]), np.pad(value_QM[valid_Q], ((0, 0), (0, 1)), constant_values=1))

    rng = np.random.default_rng([SEED, *result.target.encode()])  # of its own, whichever others are evaluated
    for draw in range(RESAMPLES):
        times_P = np.bincount(rng.integers(len(persons), size=len(persons)), minlength=len(persons))
        drawn_SM = np.tensordot(times_P, sum_PSM, 1)[rng.integers(num_splits, size=num_splits)]
        if drawn_SM[:, -1].all():
            draws_BM[draw] = (drawn_SM[:, :-1] / drawn_SM[:, -1:]).mean(0)
    return draws_BM


def _estimates(mean_M: NDArray, std_M: NDArray | None, draws_BM: NDArray) -> dict[str, Estimate]:
    complete_BM = draws_BM[~np.isnan(draws_BM[:, 0])]
    if len(complete_BM):
        low_M, high_M = np.quantile(complete_BM, (0.025, 0.975), axis=0)
    else:
        low_M = high_M = np.full(len(METRICS), np.nan)
    stds = [None] * len(METRICS) if std_M is None else std_M.tolist()
    return dict(zip(METRICS, map(Estimate, mean_M.tolist(), stds, low_M.tolist(), high_M.tolist()), strict=True))
