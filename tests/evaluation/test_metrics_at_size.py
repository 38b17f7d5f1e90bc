"""What keeps the ranking fast and small, against the loop that sorts the gallery for every query."""

import tracemalloc

import numpy as np
import pytest

from experiments.benchmarks import evaluation as benchmark
from metabin_jax.evaluation import distance, distances, rank_metrics, ranking, retrieval_metrics


def quantised_case(seed, num_query=31, num_gallery=203, num_pid=4):
    """Features of small integers: distances are exact in any order of summing, and often equal."""
    rng = np.random.default_rng([seed])
    query_QD, gallery_GD = (rng.integers(0, 3, (n, 4)).astype(np.float32) for n in (num_query, num_gallery))
    labels = [rng.integers(0, high, n) for high in (num_pid, 3) for n in (num_query, num_gallery)]
    return query_QD, gallery_GD, labels


@pytest.mark.parametrize("few", [0, 20, 256], ids=["sorted", "both", "counted"])
def test_counting_and_sorting_agree_with_the_loop(monkeypatch, few):
    monkeypatch.setattr(ranking, "_FEW_IMAGES", few)
    for seed in range(3):
        query_QD, gallery_GD, labels = quantised_case(seed, num_pid=4 + 4 * seed)
        distance_QG = distance(query_QD, gallery_GD, "euclidean")
        cmc, mean_ap = benchmark.loop_over_queries(distance_QG, *labels)
        result = rank_metrics(distance_QG, *labels)
        assert result.mAP == pytest.approx(mean_ap, rel=1e-12)
        assert list(result.cmc.values()) == pytest.approx(cmc, rel=1e-12)


def test_the_loop_rejects_another_order_of_equal_distances():
    query_QD, gallery_GD, labels = quantised_case(0)
    distance_QG = distance(query_QD, gallery_GD, "euclidean")
    backwards = [labels[0], labels[1][::-1], labels[2], labels[3][::-1]]
    _, mean_ap = benchmark.loop_over_queries(distance_QG, *labels)
    assert abs(rank_metrics(distance_QG[:, ::-1], *backwards).mAP - mean_ap) > 1e-3


def test_infinite_and_integer_distances_rank_like_any_other():
    labels = [1], [1, 2, 1, 1, 3], [1], [2, 2, 2, 1, 2]
    # Ranked list: wrong (2), match, [same camera, dropped], wrong (3), match.
    expected = pytest.approx((1 / 2 + 2 / 4) / 2)
    assert rank_metrics([[np.inf, 0.1, 0.2, 0.2, 0.3]], *labels).mAP == expected
    assert rank_metrics([[2**60 + 1, 0, 1, 1, 2**60]], *labels).mAP == expected


@pytest.mark.parametrize("metric", distances.METRICS)
def test_chunks_of_the_gallery_change_nothing(monkeypatch, metric):
    query_QD, gallery_GD, labels = quantised_case(5)
    whole = retrieval_metrics(query_QD, gallery_GD, *labels, metric)
    monkeypatch.setattr(distances, "_CHUNK_ROWS", 10)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 5 * 203)
    chunked = retrieval_metrics(query_QD, gallery_GD, *labels, metric)
    if metric == "euclidean":  # exact, so that no pair of distances may change its order
        assert chunked == whole
    assert chunked.mAP == pytest.approx(whole.mAP, rel=1e-2)
    for rows, distance_BG in distances.distance_blocks(query_QD, gallery_GD, metric):
        np.testing.assert_allclose(distance_BG, distance(query_QD, gallery_GD, metric)[rows], atol=1e-6)


def test_the_features_are_not_copied(monkeypatch):
    monkeypatch.setattr(distances, "_CHUNK_ROWS", 100)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 20_000)
    rng = np.random.default_rng([0])
    query_QD, gallery_GD = rng.random((20, 256), np.float32), rng.random((4000, 256), np.float32)
    labels = [rng.integers(0, 50, n) for n in (20, 4000, 20, 4000)]
    tracemalloc.start()
    try:
        retrieval_metrics(query_QD, gallery_GD, *labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < gallery_GD.nbytes / 5  # a mask of its values would be a quarter


def test_the_benchmark_prints_what_it_measured(capsys, monkeypatch):
    monkeypatch.setattr(benchmark.os, "sched_setaffinity", lambda *args: None)
    monkeypatch.setattr(benchmark, "MARKET", (40, 300, 8))
    monkeypatch.setattr(benchmark, "MILLION", (10, 500, 8))
    monkeypatch.setattr("sys.argv", ["evaluation"])
    benchmark.main()
    assert "40 x 300 x 8\n" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["evaluation", "--million"])
    benchmark.main()
    assert "10 x 500 x 8: " in capsys.readouterr().out
