import tracemalloc

import numpy as np
import pytest

from metabin_jax.evaluation import thresholds, verification

# The package's attribute of this name is the function.


def loop_over_pairs(query_QD, gallery_GD, query_pid, gallery_pid, query_camid, gallery_camid, far):
    """(threshold, tpr, achieved far, positives, negatives) by trying every negative score as the threshold."""
    positive, negative = [], []
    for q, query_D in enumerate(query_QD):
        for g, gallery_D in enumerate(gallery_GD):
            lengths = np.sqrt((query_D**2).sum()) * np.sqrt((gallery_D**2).sum())
            score = (query_D * gallery_D).sum() / lengths
            if query_pid[q] != gallery_pid[g]:
                negative.append(score)
            elif query_camid[q] != gallery_camid[g]:
                positive.append(score)
    positive, negative = np.array(positive), np.array(negative)
    for threshold in sorted(negative):
        achieved = (negative > threshold).sum() / len(negative)
        if achieved <= far:
            return threshold, (positive > threshold).mean(), achieved, len(positive), len(negative)


def random_case(seed, levels=None):
    """Levels: features from few exact directions of length one, so that scores are often equal."""
    rng = np.random.default_rng([seed])
    if levels:
        query_QD, gallery_GD = rng.choice([-0.5, 0.5], (23, 4)), rng.choice([-0.5, 0.5], (57, 4))
    else:
        query_QD, gallery_GD = rng.normal(size=(23, 5)), rng.normal(size=(57, 5))
    return [query_QD, gallery_GD, *(rng.integers(0, high, n) for high in (6, 3) for n in (23, 57))]


def values(result):
    return result.threshold, result.tpr, result.far, result.num_positive, result.num_negative


@pytest.mark.parametrize("far", [0.29, 0.1, 0.01, 0.0012])
@pytest.mark.parametrize("levels", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("tiles", [(1024, 4096), (5, 7)], ids=["one tile", "tiles"])
def test_agrees_with_a_loop_over_pairs(monkeypatch, tiles, levels, far):
    monkeypatch.setattr(thresholds, "_QUERY_ROWS", tiles[0])
    monkeypatch.setattr(thresholds, "_GALLERY_ROWS", tiles[1])
    for seed in range(3):
        case = random_case(seed, levels)
        assert values(verification(*case, far=far)) == pytest.approx(loop_over_pairs(*case, far), rel=1e-12)


def test_the_loop_rejects_what_keeps_pairs_of_one_camera():
    case = random_case(0)
    every_pair = [*case[:4], np.zeros(23, int), np.ones(57, int)]
    assert values(verification(*every_pair, far=0.1)) != pytest.approx(loop_over_pairs(*case, 0.1))


def angles(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def by_hand(**changes):
    # Negatives at 10, 20, 30 and 40 degrees, positives at 5, 15 and 25; the image at 1 degree is the query's camera.
    case = {
        "query_QD": angles(0),
        "gallery_GD": angles(10, 20, 30, 40, 5, 15, 25, 1),
        "query_pid": [1],
        "gallery_pid": [2, 3, 4, 5, 1, 1, 1, 1],
        "query_camid": [1],
        "gallery_camid": [1, 1, 1, 1, 2, 2, 2, 1],
        "far": 0.25,
    }
    return verification(**(case | changes))


def test_by_hand():
    assert values(by_hand()) == pytest.approx((np.cos(np.radians(20)), 2 / 3, 1 / 4, 3, 4))
    assert str(by_hand()) == "TPR 66.7 % at FAR 25.000 %, threshold 0.940 (3 positive, 4 negative pairs)"


def test_equal_scores_are_accepted_together_or_not_at_all():
    result = by_hand(gallery_GD=angles(10, 10, 10, 40, 5, 15, 25, 1))
    assert (result.tpr, result.far) == (pytest.approx(1 / 3), 0)


def test_what_cannot_be_measured_is_not_a_number():
    few = by_hand(far=0.24)
    assert np.isnan([few.threshold, few.tpr, few.far]).all()
    assert str(few) == "TPR n/a at FAR n/a, threshold n/a (3 positive, 4 negative pairs)"
    no_positive = by_hand(gallery_camid=[1] * 8)
    assert np.isnan(no_positive.tpr) and no_positive.far == 0.25
    assert str(no_positive) == "TPR n/a at FAR 25.000 %, threshold 0.940 (0 positive, 4 negative pairs)"
    empty = by_hand(gallery_GD=np.ones((0, 2)), gallery_pid=[], gallery_camid=[])
    assert (empty.num_positive, empty.num_negative) == (0, 0) and np.isnan(empty.threshold)


@pytest.mark.parametrize("num_negative", [7, 100, 1000])
def test_as_many_are_allowed_as_their_share_says(num_negative):
    for count in range(1, num_negative):
        # The product of rate and number may round to below the count, as 0.29 * 100 does.
        assert thresholds.allowed_accepts(count / num_negative, num_negative) == count
        assert thresholds.allowed_accepts((count - 0.4) / num_negative, num_negative) == count - 1


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(thresholds, "_QUERY_ROWS", 100)
    monkeypatch.setattr(thresholds, "_GALLERY_ROWS", 100)
    rng = np.random.default_rng([0])
    query_QD, gallery_GD = rng.random((1500, 4), np.float32), rng.random((1500, 4), np.float32)
    labels = [rng.integers(0, high, 1500) for high in (1000, 1000, 5, 5)]
    tracemalloc.start()
    try:
        verification(query_QD, gallery_GD, *labels, far=1e-3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1500 * 1500  # a quarter of the scores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"far": 0}, "far must be above 0 and below 1, not 0"),
        ({"far": 1.0}, "far must be above 0 and below 1, not 1.0"),
        ({"far": float("nan")}, "far must be above 0"),
        ({"query_pid": [1, 2]}, r"query_pid must have the shape \[1\]"),
        ({"query_QD": np.full((1, 2), np.nan)}, "feature of query 0 is not finite"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        by_hand(**changes)


@pytest.mark.parametrize("factor", [1e-30, 1e-21, 1e19, 1e30])
def test_the_magnitude_of_features_changes_nothing(factor):
    rng = np.random.default_rng(0)
    feature_ND = rng.normal(size=(40, 8)).astype(np.float32)
    pid, camid = np.arange(40) % 10, np.arange(40) % 3
    labels = (pid, pid, camid, camid)
    expected = verification(feature_ND, feature_ND, *labels, far=0.01)
    found = verification(feature_ND, feature_ND * np.float32(factor), *labels, far=0.01)
    assert (found.tpr, found.far) == (expected.tpr, expected.far)
    assert abs(found.threshold - expected.threshold) < 1e-5 and expected.threshold > 0.1
