"""Distances on the devices and the ranks counted from them, against loops in numpy."""

import jax
import numpy as np
import pytest

from metabin_jax.evaluation import distances, rank_metrics, retrieval_metrics

RANKS = (1, 2, 5)


def measured(query_QD, gallery_GD, labels, metric="euclidean"):
    return retrieval_metrics(query_QD, gallery_GD, *labels, metric, RANKS)


def brute_force(query_QD, gallery_GD, labels, last_first=False):
    """CMC, mAP and mINP: for each query one stable sort of its float64 Euclidean distances."""
    query_pid, gallery_pid, query_camid, gallery_camid = labels
    rows = []
    for query, query_D in enumerate(query_QD.astype(np.float64)):
        distance_G = np.sqrt(np.square(gallery_GD.astype(np.float64) - query_D).sum(1))
        order = np.argsort(distance_G, kind="stable")
        if last_first:  # of equal distances
            order = len(order) - 1 - np.argsort(distance_G[::-1], kind="stable")
        same_pid = gallery_pid[order] == query_pid[query]
        is_match = same_pid[~(same_pid & (gallery_camid[order] == query_camid[query]))]
        rank = np.flatnonzero(is_match) + 1
        if len(rank):
            precision = np.arange(1, len(rank) + 1) / rank
            rows.append([*(rank[0] <= k for k in RANKS), precision.mean(), len(rank) / rank[-1]])
    return np.mean(rows, axis=0)


def values(result):
    return [*result.cmc.values(), result.mAP, result.mINP]


def tied_case(seed, num_query=29, num_gallery=151, dtype=np.float32):
    """Small integers, so that any way of summing gives the same distances, most of them equal to others."""
    rng = np.random.default_rng([seed])
    query_QD, gallery_GD = (rng.integers(0, 3, (n, 5)).astype(dtype) for n in (num_query, num_gallery))
    labels = [rng.integers(0, high, n) for high in (6, 4) for n in (num_query, num_gallery)]
    return query_QD, gallery_GD, labels


@pytest.fixture
def small_blocks(monkeypatch):
    """7 blocks of 5 queries, 16 tiles of 10 gallery rows; all filled up at the end."""
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 5 * 151)
    monkeypatch.setattr(distances, "_CHUNK_ROWS", 10)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_brute_force(small_blocks, dtype, seed):
    case = tied_case(seed, dtype=dtype)
    assert values(measured(*case)) == pytest.approx(brute_force(*case), rel=1e-12)
    # Negative control: another order of equal distances is another result.
    assert values(measured(*case)) != pytest.approx(brute_force(*case, last_first=True), rel=1e-3)


@pytest.mark.parametrize("metric", distances.METRICS)
def test_blocks_and_the_whole_matrix_rank_the_same(small_blocks, metric):
    query_QD, gallery_GD, labels = tied_case(3)
    blocks = measured(query_QD, gallery_GD, labels, metric)
    whole = rank_metrics(distances.distance(query_QD, gallery_GD, metric), *labels, RANKS)
    assert blocks == whole
    for name in ("first_rank_Q", "average_precision_Q", "inverse_penalty_Q"):
        np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name))


def test_float64_features_are_compared_in_float64():
    query_QD, gallery_GD = np.zeros((1, 2)), np.array([[1 + 1e-9, 0.0], [1.0, 0.0]])
    labels = [np.array(x) for x in ([1], [2, 1], [1], [2, 2])]
    assert measured(query_QD, gallery_GD, labels).cmc[1] == 1
    rounded = measured(query_QD.astype(np.float32), gallery_GD.astype(np.float32), labels)
    assert rounded.cmc[1] == 0  # the negative control: equally far in float32, and the first comes first
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", distances.METRICS)
def test_equal_features_are_equally_far_wherever_they_stand(monkeypatch, metric, dtype):
    monkeypatch.setattr(distances, "_CHUNK_ROWS", 50)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 5 * 203)
    rng = np.random.default_rng([4])
    kind_G = rng.integers(0, 3, 203)
    query_QD, kind_KD = (rng.normal(size=(n, 37)).astype(dtype) for n in (13, 3))
    distance_QG = distances.distance(query_QD, kind_KD[kind_G], metric)
    for kind in range(3):
        assert (np.ptp(distance_QG[:, kind_G == kind], axis=1) == 0).all()
    assert (np.ptp(distance_QG, axis=1) > 0).all()


def test_one_trace_serves_all_blocks(small_blocks):
    distances.distance_tile.clear_cache()
    query_QD, gallery_GD, labels = tied_case(5)
    measured(query_QD, gallery_GD, labels)
    assert distances.distance_tile._cache_size() == 1
    measured(query_QD[:, :4], gallery_GD[:, :4], labels)  # the negative control
    assert distances.distance_tile._cache_size() == 2


def test_products_keep_full_precision():
    ones_ND = np.ones((2, 3), np.float32)
    for metric in distances.METRICS:
        text = str(jax.make_jaxpr(distances.distance_tile, static_argnums=2)(ones_ND, ones_ND, metric))
        assert text.count("dot_general") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 1


def test_a_distance_of_features_whose_squares_leave_the_range():
    query_QD, gallery_GD = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)
    query_QD[2] = gallery_GD[1] = 1e38  # finite, but not its square
    distance_QG = distances.distance(query_QD, gallery_GD, "euclidean")
    assert distance_QG[2].argmin() == 1 and distance_QG[2, 1] == 0
    np.testing.assert_allclose(distance_QG[2, 0], 2**0.5 * 1e38, rtol=1e-5)


def test_no_query_has_a_match():
    query_QD, gallery_GD, labels = tied_case(6)
    result = measured(query_QD, gallery_GD, [labels[0] + 100, *labels[1:]])
    assert (result.num_valid, len(result.unmatched)) == (0, 29)
    assert measured(query_QD, gallery_GD[:0], [labels[0], labels[1][:0], labels[2], labels[3][:0]]).num_valid == 0
    assert measured(query_QD[:0], gallery_GD, [labels[0][:0], labels[1], labels[2][:0], labels[3]]).num_valid == 0


def test_parts_are_equal_and_few():
    for total in range(1, 40):
        for most in range(1, 15):
            size = distances._balanced(total, most)
            parts = -(-total // size)
            assert size <= most
            assert parts == -(-total // most)
            assert size * parts - total < parts


def test_no_more_than_two_tiles_are_in_flight(monkeypatch):
    """However fast chunks are sent: else the device would hold the whole gallery."""
    monkeypatch.setattr(distances, "_CHUNK_ROWS", 10)
    in_flight, most = set(), []

    class Tile:
        def block_until_ready(self):
            in_flight.discard(self)

    def send(query_BD, gallery_CD, metric):
        tile = Tile()
        in_flight.add(tile)
        most.append(len(in_flight))
        return tile

    monkeypatch.setattr(distances, "distance_tile", send)
    query_QD, gallery_GD, _ = tied_case(7)
    assert len(list(distances._tiles(query_QD[:29], 29, gallery_GD, "cosine", query_QD.dtype))) == 16
    assert most == [1] + [2] * 15


@pytest.mark.parametrize("factor", [1e-42, 1e-30, 1e-21, 1e19, 1e30, 3e38])
@pytest.mark.parametrize("metric", distances.METRICS)
def test_magnitudes_whose_squares_leave_the_range(metric, factor):
    """Compared in float64, where they do not; in reach of float32, with rows of usual size among them."""
    rng = np.random.default_rng(0)
    query_QD, gallery_GD = (rng.uniform(-1, 1, (number, 8)) for number in (5, 9))
    if metric == "cosine":
        query_QD[1:], gallery_GD[::2] = factor * query_QD[1:], factor * gallery_GD[::2]
    else:
        query_QD, gallery_GD = factor * query_QD, factor * gallery_GD
    query_QD, gallery_GD = query_QD.astype(np.float32), gallery_GD.astype(np.float32)
    exact_QG = distances.distance(query_QD.astype(np.float64), gallery_GD.astype(np.float64), metric)
    with np.errstate(over="ignore"):  # a distance may be longer than float32 goes
        found_QG = distances.distance(query_QD, gallery_GD, metric)
        expected_QG = exact_QG.astype(np.float32)
    np.testing.assert_allclose(found_QG, expected_QG, rtol=1e-4, atol=1e-6 * (factor if metric == "euclidean" else 1))


def test_usual_features_are_not_copied_and_keep_their_bits():
    feature_ND = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    query_QD, gallery_GD, exponent = distances._in_range(feature_ND, feature_ND, "euclidean")
    assert query_QD is feature_ND and gallery_GD is feature_ND and exponent == 0
    with_zeros_ND = np.concatenate([feature_ND, np.zeros((1, 16), np.float32)])
    assert distances._in_range(with_zeros_ND, feature_ND, "cosine")[0] is with_zeros_ND


def test_unit_length_of_any_magnitude():
    feature_ND = np.array([[3, 4], [3e-40, 4e-40], [3e38, 3e38], [0, 0]], np.float32)
    expected_ND = [[0.6, 0.8], [0.6, 0.8], [0.5**0.5, 0.5**0.5], [0, 0]]
    np.testing.assert_allclose(distances.unit_length(feature_ND), expected_ND, rtol=1e-4)
