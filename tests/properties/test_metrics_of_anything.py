"""Rank metrics against a loop that sorts, for distances with many ties."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from metabin_jax.evaluation import rank_metrics, retrieval_metrics, verification

CASES = st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))


def drawn(case):
    """Labels of few people and cameras, and distances of few levels."""
    queries, gallery, people, cameras, seed = case
    rng = np.random.default_rng(seed)
    labels = [rng.integers(n, size=size) for n in (people, cameras) for size in (queries, gallery)]
    return rng.integers(4, size=(queries, gallery)).astype(float), labels


def by_hand(distance_QG, query_pid, gallery_pid, query_camid, gallery_camid):
    found = []
    for q, distances in enumerate(distance_QG):
        order = sorted(range(len(distances)), key=lambda g: (distances[g], g))
        order = [g for g in order if gallery_pid[g] != query_pid[q] or gallery_camid[g] != query_camid[q]]
        ranks = [rank for rank, g in enumerate(order, 1) if gallery_pid[g] == query_pid[q]]
        if ranks:
            precision = [number / rank for number, rank in enumerate(ranks, 1)]
            found.append((ranks[0] <= 1, sum(precision) / len(ranks), len(ranks) / ranks[-1]))
    return [sum(column) / len(found) for column in zip(*found, strict=True)] or [math.nan] * 3


@given(CASES)
def test_against_the_loop(case):
    distance_QG, labels = drawn(case)
    found = rank_metrics(distance_QG, *labels)
    np.testing.assert_allclose([found.cmc[1], found.mAP, found.mINP], by_hand(distance_QG, *labels), rtol=1e-12)
    assert found.num_valid + len(found.unmatched) == len(distance_QG)


@given(CASES, st.integers(-120, 120))
def test_powers_of_two_change_nothing(case, exponent):
    """Of a whole feature, in reach of float32: the same ranks, threshold and rates, bit for bit."""
    queries, gallery, *_, seed = case
    _, labels = drawn(case)
    rng = np.random.default_rng(seed)
    query_QD, gallery_GD = (rng.uniform(0.5, 2, (number, 3)).astype(np.float32) for number in (queries, gallery))
    moved_GD = np.ldexp(gallery_GD, exponent)
    one, other = (retrieval_metrics(query_QD, features_GD, *labels) for features_GD in (gallery_GD, moved_GD))
    np.testing.assert_array_equal(one.average_precision_Q, other.average_precision_Q)
    one, other = (verification(query_QD, features_GD, *labels, far=0.3) for features_GD in (gallery_GD, moved_GD))
    assert str(one) == str(other)
