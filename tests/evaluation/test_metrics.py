import math
import tracemalloc

import numpy as np
import pytest

from metabin_jax.evaluation import distance, distances, rank_metrics, retrieval_metrics

RANKS = (1, 2, 5, 10)


def loop_over_queries(distance_QG, query_pid, gallery_pid, query_camid, gallery_camid, drop_same_camera=True):
    """The protocol in plain Python: one ranked list of booleans per query."""
    cmc, average_precisions, inverse_penalties, first_ranks, unmatched = [], [], [], [], []
    for q in range(len(query_pid)):
        ranked_list = []
        for _, g in sorted((float(distance_QG[q][g]), g) for g in range(len(gallery_pid))):
            is_match = gallery_pid[g] == query_pid[q]
            if is_match and gallery_camid[g] == query_camid[q] and drop_same_camera:
                continue
            ranked_list.append(bool(is_match))
        if not any(ranked_list):
            unmatched.append(q)
            continue
        found, precisions = 0, []
        for rank, is_match in enumerate(ranked_list, start=1):
            if is_match:
                found += 1
                precisions.append(found / rank)
                last = rank
        cmc.append([any(ranked_list[:k]) for k in RANKS])
        first_ranks.append(1 + ranked_list.index(True))
        average_precisions.append(sum(precisions) / found)
        inverse_penalties.append(found / last)
    return {
        "cmc": dict(zip(RANKS, np.mean(cmc, axis=0).tolist(), strict=True)),
        "mAP": np.mean(average_precisions),
        "mINP": np.mean(inverse_penalties),
        "num_valid": len(cmc),
        "unmatched": tuple(unmatched),
        "per_query": [first_ranks, average_precisions, inverse_penalties],
    }


def assert_same(actual, expected):
    assert actual.cmc == pytest.approx(expected["cmc"], rel=1e-12)
    assert actual.mAP == pytest.approx(expected["mAP"], rel=1e-12)
    assert actual.mINP == pytest.approx(expected["mINP"], rel=1e-12)
    assert (actual.num_valid, actual.unmatched) == (expected["num_valid"], expected["unmatched"])
    per_query = [actual.first_rank_Q, actual.average_precision_Q, actual.inverse_penalty_Q]
    assert np.flatnonzero(np.isnan(per_query[0])).tolist() == list(actual.unmatched)
    np.testing.assert_allclose([x[~np.isnan(x)] for x in per_query], expected["per_query"], rtol=1e-12)


def random_case(seed, num_query=23, num_gallery=57, num_pid=9, num_camera=3, levels=None):
    rng = np.random.default_rng([seed])
    distance_QG = rng.random((num_query, num_gallery), np.float32)
    if levels:
        distance_QG = np.floor(distance_QG * levels) / levels
    query_pid, gallery_pid = rng.integers(1, num_pid + 1, num_query), rng.integers(0, num_pid, num_gallery)
    query_camid, gallery_camid = (rng.integers(1, num_camera + 1, n) for n in (num_query, num_gallery))
    return distance_QG, query_pid, gallery_pid, query_camid, gallery_camid


@pytest.mark.parametrize("num_camera", [1, 2, 12])
@pytest.mark.parametrize("levels", [None, 1, 4], ids=["no ties", "all tied", "many ties"])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_loop_over_queries(seed, levels, num_camera):
    case = random_case(seed, num_pid=6 if num_camera > 1 else 20, num_camera=num_camera, levels=levels)
    if num_camera == 1:
        case[4][::3] = 2  # else no query could have a match
    expected = loop_over_queries(*case)
    assert_same(rank_metrics(*case, ranks=RANKS), expected)
    assert expected["unmatched"]  # pid `num_pid` is in no gallery


def test_the_loop_rejects_metrics_that_keep_same_camera_images():
    case = random_case(0)
    kept = loop_over_queries(*case, drop_same_camera=False)
    with pytest.raises(AssertionError):
        assert_same(rank_metrics(*case, ranks=RANKS), kept)


def test_by_hand():
    # Ranked list of query 0: [same camera, dropped], wrong, match, distractor, match -> precisions 1/2, 2/4.
    # Query 1 has its match first. Query 2 (camera 12) sees only its own camera.
    distance_QG = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.1, 0.9, 0.9, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5]]
    gallery_pid, gallery_camid = [7, 99999, 7, 0, 7], [1, 2, 12, 3, 3]
    result = rank_metrics(distance_QG, [7, 99999, 99999], gallery_pid, [1, 1, 2], gallery_camid, ranks=(1, 2))
    assert result.cmc == {1: 0.5, 2: 1.0}
    assert result.mAP == pytest.approx(np.mean([(1 / 2 + 2 / 4) / 2, 1]))
    assert result.mINP == pytest.approx(np.mean([2 / 4, 1]))
    assert (result.num_valid, result.unmatched) == (2, (2,))


def test_camera_12_is_not_camera_1():
    case = [[0.1, 0.2]], [5], [5, 6], [1]
    assert rank_metrics(*case, [12, 12]).cmc[1] == 1
    assert rank_metrics(*case, [1, 12]).num_valid == 0


def test_ties_keep_the_order_of_the_gallery():
    tied = [[0.5, 0.5]]
    assert rank_metrics(tied, [1], [1, 2], [1], [2, 2], ranks=(1,)).cmc == {1: 1.0}
    assert rank_metrics(tied, [1], [2, 1], [1], [2, 2], ranks=(1,)).cmc == {1: 0.0}


def test_distractors_cost_precision_but_are_no_matches():
    pids, camids = [3, 3], [2, 2]
    clean = rank_metrics([[0.1, 0.3]], [3], pids, [1], camids)
    crowded = rank_metrics([[0.1, 0.3, 0.2]], [3], [*pids, 0], [1], [*camids, 1])
    assert (clean.mAP, clean.mINP) == (1, 1)
    assert crowded.mAP == pytest.approx((1 + 2 / 3) / 2)
    assert crowded.mINP == pytest.approx(2 / 3)


def test_single_shot_mINP_equals_mAP():
    rng = np.random.default_rng([3])
    distance_QG, pid = rng.random((20, 20)), np.arange(20)
    single = rank_metrics(distance_QG, pid, pid, np.full(20, 1), np.full(20, 2))
    assert single.mINP == pytest.approx(single.mAP, rel=1e-12)
    twice = rank_metrics(np.tile(distance_QG, 2), pid, np.tile(pid, 2), np.full(20, 1), np.full(40, 2))
    assert twice.mINP != pytest.approx(twice.mAP, rel=0.01)


@pytest.mark.parametrize("num_gallery", [0, 4])
def test_no_valid_query_gives_nan_and_no_crash(num_gallery):
    labels = [1, 2], np.zeros(num_gallery, int), [1, 1], np.ones(num_gallery, int)
    result = rank_metrics(np.zeros((2, num_gallery)), *labels)
    assert all(math.isnan(value) for value in (result.mAP, result.mINP, *result.cmc.values()))
    assert (result.num_valid, result.unmatched) == (0, (0, 1))


def test_blocks_of_queries_change_nothing(monkeypatch):
    rng, (_, *labels) = np.random.default_rng([4]), random_case(4, num_query=11)
    features = rng.normal(size=(11, 5)), rng.normal(size=(57, 5))
    whole = retrieval_metrics(*features, *labels)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 2 * 57)
    assert len(list(distances.distance_blocks(*features))) == 6
    assert retrieval_metrics(*features, *labels) == whole


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 50_000)
    rng = np.random.default_rng([0])
    query_QD, gallery_GD = rng.random((2000, 4), np.float32), rng.random((1000, 4), np.float32)
    labels = [rng.integers(0, 50, n) for n in (2000, 1000, 2000, 1000)]
    retrieval_metrics(query_QD, gallery_GD, *labels)  # compiles, with memory of its own
    tracemalloc.start()
    try:
        retrieval_metrics(query_QD, gallery_GD, *labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < query_QD.shape[0] * gallery_GD.shape[0]  # a quarter of the distance matrix


@pytest.mark.parametrize("metric", distances.METRICS)
def test_distances_agree_with_their_definition(metric):
    rng = np.random.default_rng([5])
    query_QD, gallery_GD = rng.normal(size=(7, 5)), rng.normal(size=(9, 5))
    for q, query_D in enumerate(query_QD):
        for g, gallery_D in enumerate(gallery_GD):
            if metric == "cosine":
                lengths = math.sqrt(sum(query_D**2)) * math.sqrt(sum(gallery_D**2))
                expected = 1 - sum(query_D * gallery_D) / lengths
            else:
                expected = math.sqrt(sum((query_D - gallery_D) ** 2))
            assert distance(query_QD, gallery_GD, metric)[q, g] == pytest.approx(expected, rel=1e-9)


def test_distance_keeps_float64_and_widens_float16():
    for dtype, expected in ((np.float64, np.float64), (np.float32, np.float32), (np.float16, np.float32)):
        assert distance(np.ones((2, 3), dtype), np.ones((2, 3), dtype)).dtype == expected


def test_a_zero_feature_has_cosine_distance_one():
    assert distance(np.zeros((1, 3)), np.ones((1, 3))).item() == 1


def test_cosine_ignores_length_and_euclidean_does_not():
    query_QD, gallery_GD = np.array([[1.0, 0.0]]), np.array([[10.0, 0.0], [1.0, 0.5]])
    case = query_QD, gallery_GD, [1], [1, 2], [1], [2, 2]
    assert retrieval_metrics(*case, metric="cosine").cmc[1] == 1
    assert retrieval_metrics(*case, metric="euclidean").cmc[1] == 0


@pytest.mark.parametrize("metric", distances.METRICS)
def test_features_and_their_distances_give_the_same_metrics(metric):
    rng = np.random.default_rng([6])
    query_QD, gallery_GD = rng.normal(size=(23, 8)), rng.normal(size=(57, 8))
    _, *labels = random_case(6)
    expected = loop_over_queries(distance(query_QD, gallery_GD, metric), *labels)
    assert_same(retrieval_metrics(query_QD, gallery_GD, *labels, metric=metric, ranks=RANKS), expected)


def bad_call(**changes):
    case = {
        "query_QD": np.ones((2, 3)),
        "gallery_GD": np.ones((4, 3)),
        "query_pid": [1, 2],
        "gallery_pid": [1, 2, 3, 4],
        "query_camid": [1, 1],
        "gallery_camid": [2, 2, 2, 2],
    }
    return retrieval_metrics(**(case | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "manhattan"}, r"metric must be one of cosine, euclidean, not 'manhattan'"),
        ({"query_pid": [1]}, r"query_pid must have the shape \[2\], not \[1\]"),
        ({"gallery_camid": [1.5] * 4}, "gallery_camid must hold integers, not float64"),
        ({"gallery_GD": np.ones((4, 5))}, r"not \[2, 3\] and \[4, 5\]"),
        ({"query_QD": np.array([[1, 1, 1], [1, np.inf, 1]])}, "feature of query 1 is not finite"),
        ({"gallery_GD": np.full((4, 3), np.nan)}, r"feature of gallery 0 is not finite \(4 such rows\)"),
        ({"ranks": (0, 1)}, r"ranks must be at least 1, not \[0, 1\]"),
    ],
)
def test_bad_input_is_named(changes, message):
    assert bad_call().num_valid == 2
    with pytest.raises(ValueError, match=message):
        bad_call(**changes)


def test_nan_distance_is_named():
    with pytest.raises(ValueError, match="NaN for query 1"):
        rank_metrics([[0.0], [np.nan]], [1, 1], [1], [1, 1], [2])
    with pytest.raises(ValueError, match="shape"):
        rank_metrics([0.0], [1], [1], [1], [2])
