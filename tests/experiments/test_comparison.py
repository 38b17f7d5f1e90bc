"""The choice of trials by the sources alone, and the test of a difference over targets."""

import numpy as np
import pytest
from scipy import stats

from experiments import comparison
from experiments.comparison import METHODS, choices, chosen, compare, difference, pairs, table, trials
from experiments.settings import Setting


def line(row, target, seed, r1, source):
    return {"run": row.run, "target": target, "seed": seed, "R-1": r1, "mAP": r1 / 2, "source_mAP": source}


def lines_of(method, scores):
    """scores: target -> for each trial (R-1, source_mAP) with seed 0, and R-1 of the others with seeds 1, 2, ..."""
    found = []
    for target, (of_trials, others) in scores.items():
        rows = trials(method)
        found += [line(row, target, 0, *score) for row, score in zip(rows, of_trials, strict=True)]
        best = rows[int(np.argmax([score[1] for score in of_trials]))]
        found += [line(best, target, seed, r1, 0.0) for seed, r1 in enumerate(others, start=1)]
    return found


def test_the_target_chooses_nothing():
    """The chosen trial is the worse one on the target."""
    lines = lines_of("BN", {"mall": ([(0.9, 0.5), (0.1, 0.6)], [0.2])})
    assert chosen(lines, "BN", "mall") == trials("BN")[1]
    assert [found["R-1"] for found in pairs(lines, "BN").values()] == [0.1, 0.2]
    diverged = lines_of("BN", {"mall": ([(0.9, float("nan")), (0.1, 0.0)], [])})
    assert chosen(diverged, "BN", "mall") is not None
    assert chosen(lines[:1], "BN", "mall") is None  # the other trial is missing


def test_a_difference_is_paired_by_target_and_seed():
    ours = {"mall": ([(0.5, 0.9), (0.0, 0.1)], [0.7]), "plaza": ([(0.9, 0.9), (0.0, 0.1)], [0.8])}
    theirs = {"mall": ([(0.0, 0.1), (0.4, 0.9)], [0.5]), "plaza": ([(0.0, 0.1), (0.9, 0.9)], [0.9])}
    lines = lines_of("MetaBIN", ours) + lines_of("BIN", theirs)
    found = difference(lines, "MetaBIN", "BIN", "R-1")
    means = np.array([(10 + 20) / 2, (0 - 10) / 2])
    low, high = stats.t.interval(0.95, 1, means.mean(), stats.sem(means))
    np.testing.assert_allclose(found[:3], (means.mean(), low, high))
    assert (found.pairs, found.ahead, found.targets) == (4, 1, 2)
    assert "| MetaBIN | 60.0 ± 14.1 | 85.0 ± 7.1 | 72.5 / 36.3 | 4 |" in table(lines)
    assert choices(lines).splitlines()[-2:] == ["| BIN | 0 | 2 |", "| MetaBIN | 2 | 0 |"]


def test_seeds_of_one_target_are_no_evidence_for_another():
    """By simulation: no true difference, but each target has its own; 5 % of the intervals leave 0 out."""
    rng = np.random.default_rng(0)

    def interval():
        own = {target: float(rng.normal()) for target in ("a", "b", "c", "d", "e", "f")}
        near = {target: [value + 0.1 * float(rng.normal()) for _ in range(4)] for target, value in own.items()}
        ours = {target: ([(values[0], 0.9), (0, 0.1)], values[1:]) for target, values in near.items()}
        theirs = {target: ([(0.0, 0.9), (0, 0.1)], [0.0] * 3) for target in own}
        return difference(lines_of("MetaBIN", ours) + lines_of("BIN", theirs), "MetaBIN", "BIN", "R-1")

    found = [interval() for _ in range(400)]
    assert np.mean([each.low > 0 or each.high < 0 for each in found]) == pytest.approx(0.05, abs=0.03)


def test_a_target_with_more_seeds_weighs_no_more():
    ours = {"mall": ([(0.5, 0.9), (0.0, 0.1)], [0.5, 0.5]), "plaza": ([(0.1, 0.9), (0.0, 0.1)], [])}
    theirs = {target: ([(0.0, 0.9), (0.0, 0.1)], [0.0, 0.0]) for target in ours}
    found = difference(lines_of("MetaBIN", ours) + lines_of("BIN", theirs), "MetaBIN", "BIN", "R-1")
    assert found.mean == pytest.approx((50 + 10) / 2)


def test_the_visible_difference_is_seen_as_often_as_it_says():
    """By simulation: the share of t tests at 5 % that see a true difference of this size."""
    rng, count, spread = np.random.default_rng(0), 18, 9.0
    free = count - 1
    visible = (stats.t.ppf(0.975, free) + stats.t.ppf(comparison.POWER, free)) * spread / np.sqrt(count)
    p = stats.ttest_1samp(rng.normal(visible, spread, (20_000, count)), 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(comparison.POWER, abs=0.01)


def test_other_seeds_train_the_chosen_trial_alone(tmp_path, monkeypatch):
    """Every trial once with the first seed, then the chosen one; nothing is trained again."""
    asked = []

    def work(jobs):
        asked.append(len(jobs))
        found = []
        for job in jobs:
            is_second = job.row.overrides["optimizer.alpha"] == comparison.TRIALS[1]["optimizer.alpha"]
            found.append(job.head | {"R-1": 0.5, "mAP": 0.5, "source_mAP": float(is_second == (job.target == "mall"))})
        return found

    monkeypatch.setattr(comparison, "run_together", work)
    arguments = ["BN", "MetaBIN"], Setting("networks"), ["mall", "plaza"], [0, 1, 2], tmp_path, 1, 3
    lines = compare(*arguments)
    assert asked == [3, 1, 3, 1, 3, 1, 3, 1]
    others = {(row["target"], row["run"]) for row in lines if row["seed"]}
    first, second = (trials("BN")[number].run for number in (0, 1))
    assert {pair for pair in others if "method=bn" in pair[1]} == {("mall", second), ("plaza", first)}
    assert (compare(*arguments), len(asked)) == (lines, 8)


def test_methods_are_what_they_say():
    assert len({row.run for method in METHODS for row in trials(method)}) == len(METHODS) * len(comparison.TRIALS)


def test_one_pair_has_a_difference_and_no_interval():
    one = {"mall": ([(0.5, 0.25), (0.4, 0.2)], [])}
    lines = lines_of("BN", one) + lines_of("BIN", one)
    (row,) = [line for line in comparison.differences(lines).splitlines() if line.startswith("| BIN - BN")]
    assert "nan" not in row and row.endswith("| - | 0 of 1 | 1 |")
