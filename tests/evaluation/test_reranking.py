import math
import tracemalloc

import numpy as np
import pytest

from metabin_jax.data.records import Record
from metabin_jax.evaluation import distances, query_expansion, query_gallery, rank_metrics, rerank, reranking
from metabin_jax.evaluation.targets import evaluate_target


def cosine_distance(a_D, b_D):
    lengths = math.sqrt(sum(a_D**2)) * math.sqrt(sum(b_D**2))
    return 1 - (sum(a_D * b_D) / lengths if lengths else 0)


def rerank_by_sets(query_QD, gallery_GD, k1, k2, lambda_value, share=2 / 3, divide=True):
    """The same equations with Python sets and dense loops."""
    image_ND, first = np.concatenate([query_QD, gallery_GD]), len(query_QD)
    if gallery_GD is query_QD:
        image_ND, first = query_QD, 0
    everyone = range(len(image_ND))
    # Rounded, so that equal distances are equal here whatever order they were summed in.
    d = np.array([[round(2 * cosine_distance(image_ND[i], image_ND[j]), 12) for j in everyone] for i in everyone])
    d = d / np.where(d.max(axis=1) == 0, 1, d.max(axis=1))[:, None]
    order = [sorted(everyone, key=lambda j: (j != i, d[i, j], j)) for i in everyone]

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = np.zeros_like(d)
    for i in everyone:
        members = reciprocal(i, k1)
        expanded = set(members)
        for j in members:
            candidates = reciprocal(j, round(k1 / 2))
            if len(members & candidates) > share * len(candidates) + 1e-9:
                expanded |= candidates
        for j in expanded:
            v[i, j] = math.exp(-d[i, j])
        if divide:
            v[i] /= v[i].sum()
    v = np.array([np.mean([v[j] for j in order[i][:k2]], axis=0) for i in everyone])
    result = np.empty((len(query_QD), len(gallery_GD)))
    for q in range(len(query_QD)):
        for g in range(len(gallery_GD)):
            a, b = v[q], v[first + g]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            result[q, g] = (1 - lambda_value) * jaccard + lambda_value * d[q, first + g]
    return result


def features(seed, ties, num_query=6, num_gallery=25):
    """Ties: few directions of the exact length one, so that many images are equally far or copies."""
    rng = np.random.default_rng([seed])
    image_ND = rng.choice([-0.5, 0.5], (31, 4)) if ties else rng.normal(size=(31, 5)) + 1
    return image_ND[:num_query], image_ND[num_query : num_query + num_gallery]


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (4, 3), (7, 1), (5, 9), (20, 6), (100, 100)])
def test_agrees_with_sets_and_loops(k1, k2, ties):
    for seed in range(2):
        case = features(seed, ties)
        expected = rerank_by_sets(*case, k1, k2, 0.3)
        np.testing.assert_allclose(rerank(*case, k1, k2, 0.3), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (5, 4), (20, 6)])
def test_images_that_are_queries_and_gallery_count_once(k1, k2, ties):
    image_ND = np.concatenate(features(0, ties))
    expected = rerank_by_sets(image_ND, image_ND, k1, k2, 0.3)
    np.testing.assert_allclose(rerank(image_ND, None, k1, k2), expected, rtol=0, atol=1e-9)
    assert np.abs(rerank(image_ND, image_ND.copy(), k1, k2) - expected).max() > 0.01


@pytest.mark.parametrize("setting", [{"rerank": True}, {"query_expansion": 2}])
def test_a_domain_without_marks_is_one_set(setting):
    records = [Record(str(n), pid=n // 4, camid=n % 3, domain="mall", split="all") for n in range(31)]
    image_ND = np.concatenate(features(0, ties=False))
    split = query_gallery(records)
    (metrics,) = evaluate_target("mall", records, lambda row: image_ND[row], [split], **setting).metrics

    def distance_of(gallery_GD):
        if "rerank" in setting:
            return rerank(image_ND, gallery_GD)
        return distances.distance(query_expansion(image_ND, gallery_GD, 2), image_ND)

    one_set, two_sets = (rank_metrics(distance_of(gallery_GD), *split.labels).mAP for gallery_GD in (None, image_ND))
    assert metrics.mAP == pytest.approx(one_set) != pytest.approx(two_sets, abs=1e-4)


@pytest.mark.parametrize("other", [{"share": 0.5}, {"divide": False}])
def test_the_sets_reject_another_share_and_undivided_weights(other):
    case = features(0, ties=False)
    assert np.abs(rerank(*case, 7, 3) - rerank_by_sets(*case, 7, 3, 0.3, **other)).max() > 0.01


def test_two_thirds_are_not_enough():
    """Two of the three in the expanded neighbour's set are shared in some of these: the text's rule gives another."""
    case = features(0, ties=False)
    assert np.abs(rerank(*case, 4, 1) - rerank_by_sets(*case, 4, 1, 0.3, share=2 / 3 - 1e-6)).max() > 0.01


def test_blocks_change_nothing(monkeypatch):
    case = features(1, ties=True)
    whole = rerank(*case, 5, 3), query_expansion(*case, 5)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 70)
    monkeypatch.setattr(distances, "_CHUNK_ROWS", 4)
    monkeypatch.setattr(reranking, "_SET_ROWS", 7)
    np.testing.assert_allclose(rerank(*case, 5, 3), whole[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(query_expansion(*case, 5), whole[1], rtol=0, atol=1e-12)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 50_000)
    image_ND = np.random.default_rng([0]).normal(size=(2000, 4)).astype(np.float32)
    tracemalloc.start()
    try:
        rerank(image_ND[:10], image_ND[10:], k1=5, k2=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2000 * 2000 * 4 / 3  # a third of the distances among all images


def test_a_weight_of_one_leaves_the_order_as_it_was():
    query_QD, gallery_GD = features(2, ties=False)
    original = np.argsort(distances.distance(query_QD, gallery_GD), axis=1)
    assert (np.argsort(rerank(query_QD, gallery_GD, 4, 2, lambda_value=1), axis=1) == original).all()
    assert (np.argsort(rerank(query_QD, gallery_GD, 4, 2), axis=1) != original).any()


def test_reranking_finds_more_of_what_lies_in_clusters():
    rng = np.random.default_rng([1])
    centre_PD, pid = rng.normal(size=(30, 16)), np.repeat(np.arange(30), 9)
    image_ND = (centre_PD[pid] + 0.8 * rng.normal(size=(270, 16))).astype(np.float32)
    is_query = np.arange(270) % 9 == 0
    query_QD, gallery_GD = image_ND[is_query], image_ND[~is_query]
    labels = pid[is_query], pid[~is_query], np.zeros(30, int), np.ones(240, int)
    plain = rank_metrics(distances.distance(query_QD, gallery_GD), *labels).mAP
    result_QG = rerank(query_QD, gallery_GD, k1=8, k2=4)
    assert result_QG.dtype == np.float32
    assert rank_metrics(result_QG, *labels).mAP > plain + 0.03


def test_copies_of_one_image_are_at_no_distance():
    image_ND = np.tile(np.random.default_rng([3]).normal(size=(1, 50)).astype(np.float32), (12, 1))
    np.testing.assert_allclose(rerank(image_ND[:2], image_ND[2:], 20, 6), 0, atol=1e-6)


def expand_by_loops(query_QD, gallery_GD, k, alpha):
    expanded = []
    for query_D in query_QD:
        similarity = [1 - round(cosine_distance(query_D, gallery_D), 12) for gallery_D in gallery_GD]
        others = [g for g in range(len(gallery_GD)) if gallery_GD is not query_QD or gallery_GD[g] is not query_D]
        nearest = sorted(others, key=lambda g: (-similarity[g], g))[:k]
        total_D = query_D / np.sqrt(sum(query_D**2))
        for g in nearest:
            total_D = total_D + max(similarity[g], 0) ** alpha * gallery_GD[g] / np.sqrt(sum(gallery_GD[g] ** 2))
        expanded.append(total_D / np.sqrt(sum(total_D**2)))
    return np.array(expanded)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("k", "alpha"), [(1, 0.0), (5, 3.0), (25, 0.5), (100, 2.0)])
def test_expansion_agrees_with_loops(k, alpha, ties):
    case = features(4, ties)
    expected = expand_by_loops(*case, k, alpha)
    np.testing.assert_allclose(query_expansion(*case, k, alpha), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_an_image_is_not_its_own_neighbour(k):
    image_ND = list(np.concatenate(features(4, ties=False)))
    expected = expand_by_loops(image_ND, image_ND, k, 3.0)
    np.testing.assert_allclose(query_expansion(image_ND, None, k), expected, rtol=0, atol=1e-9)
    assert np.abs(query_expansion(image_ND, image_ND, k) - expected).max() > 1e-3
    assert query_expansion(image_ND[:1]) == pytest.approx(image_ND[0][None] / np.linalg.norm(image_ND[0]))


def test_the_loops_reject_another_number_of_neighbours_and_another_power():
    case = features(4, ties=False)
    for other in ((6, 3.0), (5, 2.0)):
        assert np.abs(query_expansion(*case, 5, 3.0) - expand_by_loops(*case, *other)).max() > 1e-3


def test_expansion_leaves_its_input_alone():
    query_QD, gallery_GD = (np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8]]))
    before = query_QD.copy()
    expanded_QD = query_expansion(query_QD, gallery_GD, k=1, alpha=1)
    assert expanded_QD == pytest.approx(np.array([[1.36, 0.48]]) / math.hypot(1.36, 0.48))
    assert (query_QD == before).all()
    no_gallery = query_expansion(query_QD.astype(np.float32), np.ones((0, 2), np.float32))
    assert no_gallery.dtype == np.float32 and (no_gallery == query_QD).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, g: rerank(q, g[:0]), "query_QD and gallery_GD must hold one feature or more"),
        (lambda q, g: rerank(q, g[:, :2]), "one D"),
        (lambda q, g: rerank(q, g * np.nan), "feature of gallery 0 is not finite"),
        (lambda q, g: rerank(q, g, k1=0), "k1 and k2 must be at least 1, not 0 and 6"),
        (lambda q, g: rerank(q, g, k2=0), "k1 and k2 must be at least 1, not 20 and 0"),
        (lambda q, g: rerank(q, g, lambda_value=1.1), "lambda_value must be from 0 to 1, not 1.1"),
        (lambda q, g: query_expansion(q, g, k=0), "k must be at least 1, not 0"),
        (lambda q, g: query_expansion(q, g, alpha=-1), "alpha must be 0 or more, not -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*features(0, ties=False))
