import dataclasses
import math
import statistics as stdlib

import numpy as np
import pytest

from metabin_jax.evaluation import QueryGallery, RetrievalMetrics, Verification
from metabin_jax.evaluation.statistics import METRICS, RESAMPLES, resampled, summarise
from metabin_jax.evaluation.targets import TargetResult
from metabin_jax.evaluation.thresholds import Pairs, ScoredPairs


def result(ranks, pids=None, target="viper") -> TargetResult:
    """From the rank of each query's single match, a list per split; nan: no match. pids: the queries', likewise."""
    metrics, splits = [], []
    for number, first in enumerate(ranks):
        first_Q = np.array(first, float)
        valid = first_Q[~np.isnan(first_Q)]
        mean = {k: float((valid <= k).mean()) if len(valid) else math.nan for k in (1, 5, 10)}
        precision = float((1 / valid).mean()) if len(valid) else math.nan
        unmatched = tuple(np.flatnonzero(np.isnan(first_Q)).tolist())
        metrics.append(
            RetrievalMetrics(mean, precision, precision, len(valid), unmatched, first_Q, 1 / first_Q, 1 / first_Q)
        )
        pid_Q = np.arange(len(first_Q)) if pids is None else np.array(pids[number])
        splits.append(QueryGallery(pid_Q, pid_Q, pid_Q, pid_Q, pid_Q, pid_Q + 1))
    verification = Verification(math.nan, math.nan, math.nan, 0, 0)
    none = Pairs(*np.empty((3, 0)))
    pairs = ScoredPairs(none, none, np.empty(0, np.int64))
    return TargetResult(target, [], "by hand", splits, [], metrics, pairs, verification, ())


def drawn(seed, num_splits=10, persons=632, queries=316, share=0.5, target="viper"):
    """Persons found at rank 1 with a probability of their own (mean `share`), else at rank 2; and their numbers."""
    rng = np.random.default_rng(seed)
    of_person = rng.beta(0.3 * share, 0.3 * (1 - share), persons)
    pids = [rng.permutation(persons)[:queries] for _ in range(num_splits)]
    return result([np.where(rng.random(queries) < of_person[pid], 1, 2) for pid in pids], pids, target)


def test_mean_and_deviation_by_hand():
    """R-1 of 2/3 and 1/2 (the query without a match does not count), R-5 of 1 and 1/2, mAP of 2.5/3 and 1.1/2."""
    (summary,) = summarise([result([[1, 2, 1], [1, 10, math.nan]])])
    estimates = summary.estimates
    assert (summary.splits, summary.queries, summary.unmatched) == (2, 5, 1)
    assert estimates["R-1"].mean == pytest.approx(7 / 12)
    assert estimates["R-1"].std == pytest.approx((2 / 3 - 1 / 2) / math.sqrt(2))  # ddof 1
    assert estimates["R-5"].mean == pytest.approx(3 / 4) and estimates["R-10"].mean == 1
    assert estimates["mAP"].mean == estimates["mINP"].mean == pytest.approx((2.5 / 3 + 1.1 / 2) / 2)


def test_each_interval_is_of_its_own_metric():
    """Queries with several matches have another mINP than mAP."""
    one = result([[1, 2, 1, 7]])
    (metrics,) = one.metrics
    metrics = dataclasses.replace(metrics, average_precision_Q=np.full(4, 0.7), inverse_penalty_Q=np.full(4, 0.3))
    draws_BM = resampled(dataclasses.replace(one, metrics=[metrics]))
    for name, value in (("mAP", 0.7), ("mINP", 0.3)):
        np.testing.assert_allclose(draws_BM[:, METRICS.index(name)], value)
    means = {name: draws_BM[:, METRICS.index(name)].mean() for name in ("R-1", "R-5", "R-10")}
    assert means == pytest.approx({"R-1": 0.5, "R-5": 0.75, "R-10": 1}, abs=0.05)


def test_mean_and_deviation_in_plain_loops():
    results = [drawn(1), drawn(2, num_splits=3, queries=100, target="grid")]
    *summaries, over_all = summarise(results)
    for summary, measured in zip(summaries, results, strict=True):
        means = []
        for metrics in measured.metrics:
            found = 0
            for rank in metrics.first_rank_Q:
                found += rank <= 1
            means.append(found / len(metrics.first_rank_Q))
        assert summary.estimates["R-1"].mean == pytest.approx(stdlib.mean(means))
        assert summary.estimates["R-1"].std == pytest.approx(stdlib.stdev(means))
        assert summary.estimates["R-1"].std != pytest.approx(stdlib.pstdev(means), rel=1e-3)
    assert over_all.name == "mean" and (over_all.splits, over_all.queries) == (13, 3460)
    assert over_all.estimates["R-1"].mean == pytest.approx(stdlib.mean(s.estimates["R-1"].mean for s in summaries))
    assert over_all.estimates["R-1"].std is None


@pytest.mark.parametrize(("queries", "points"), [(316, 2.8), (125, 4.5), (100, 4.5), (60, 5.2)])
def test_one_split_has_the_binomial_error(queries, points):
    """sqrt(p (1 - p) / n), in points at the share of hits that the paper reports for each target."""
    share = {316: 0.569, 125: 0.497, 100: 0.725, 60: 0.797}[queries]
    hits = round(share * queries)
    one = result([[1] * hits + [2] * (queries - hits)])
    (summary,) = summarise([one])
    p, (mean, std, low, high) = hits / queries, summary.estimates["R-1"]
    error = math.sqrt(p * (1 - p) / queries)
    assert 100 * error == pytest.approx(points, abs=0.06)
    assert resampled(one)[:, 0].std() == pytest.approx(error, rel=0.06)
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.1)
    assert mean == p and std is None and low < p < high
    assert summary.estimates["R-5"][:] == (1, None, 1, 1)


def test_ten_splits_are_not_ten_times_the_persons():
    """The error of the mean over ten splits, known from drawing persons anew, is met; the naive one is half of it."""
    true_error = np.std([summary_mean(drawn(seed)) for seed in range(200)])
    measured = drawn(0)
    ours = resampled(measured)[:, 0].std()
    assert true_error < 1.1 * ours and ours < 1.5 * true_error

    rng = np.random.default_rng(0)
    hit_SQ = np.array([metrics.first_rank_Q == 1 for metrics in measured.metrics])
    naive = [hit_SQ[rng.integers(10, size=(10, 1)), rng.integers(316, size=(10, 316))].mean() for _ in range(RESAMPLES)]
    assert np.std(naive) < 0.65 * true_error


def summary_mean(measured):
    return np.mean([metrics.cmc[1] for metrics in measured.metrics])


def test_queries_of_a_person_are_drawn_together():
    """With four equal queries per person, the error is that of a quarter of the queries."""
    ranks = np.arange(400) // 4 % 2 + 1
    together = resampled(result([ranks], [np.arange(400) // 4]))[:, 0].std()
    apart = resampled(result([ranks]))[:, 0].std()
    assert together == pytest.approx(math.sqrt(0.25 / 100), rel=0.06)
    assert apart == pytest.approx(math.sqrt(0.25 / 400), rel=0.06)


def test_splits_are_drawn_too():
    """Where all persons do alike and only the splits differ, the error is that of ten splits."""
    by_split = resampled(result([[1 + number % 2] * 50 for number in range(10)]))[:, 0].std()
    assert by_split == pytest.approx(math.sqrt(0.25 / 10), rel=0.06)


def test_over_all_targets():
    """The error of a mean of four independent targets: a quarter of the root of the summed squares."""
    results = [
        drawn(seed, num_splits=1, target=name) for seed, name in enumerate(("viper", "grid", "ilids", "prid2011"))
    ]
    over_all = summarise(results)[-1].estimates["R-1"]
    errors = [resampled(measured)[:, 0].std() for measured in results]
    assert (over_all.high - over_all.low) / (2 * 1.96) == pytest.approx(math.hypot(*errors) / 4, rel=0.1)


def test_deterministic_and_independent_of_other_targets():
    alone, again = summarise([drawn(1)]), summarise([drawn(1)])
    with_another = summarise([drawn(2, target="grid"), drawn(1)])
    assert alone == again and with_another[1] == alone[0]
    renamed = summarise([drawn(1, target="grid")])
    assert renamed[0].estimates["R-1"].low != alone[0].estimates["R-1"].low  # a stream of its own


def test_without_a_match():
    """A split without any match makes the target's numbers nan, and hides no other target's."""
    empty = result([[1, 2], [math.nan, math.nan]])
    first, second, over_all = summarise([empty, drawn(1, target="grid")])
    assert all(math.isnan(value) for value in first.estimates["mAP"])
    assert first.unmatched == 2 and not math.isnan(second.estimates["mAP"].low)
    assert math.isnan(over_all.estimates["mAP"].mean)
    with pytest.raises(ValueError, match="each once"):
        summarise([empty, empty])
