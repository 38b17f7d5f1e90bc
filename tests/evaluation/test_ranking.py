"""What a ranking keeps, against one stable sort per query."""

import numpy as np
import pytest

from metabin_jax.evaluation import ranking
from metabin_jax.evaluation.inputs import check_labels
from metabin_jax.evaluation.metrics import metrics_of
from metabin_jax.evaluation.ranking import rank

Q, G = 13, 41


def tied_case(seed):
    """Distances of four values, and labels of few identities and cameras; identity 5 has no image in the gallery."""
    rng = np.random.default_rng([seed])
    labels = [rng.integers(0, high, n) for high, n in ((6, Q), (5, G), (3, Q), (3, G))]
    return rng.integers(0, 4, (Q, G)).astype(np.float32), check_labels(labels, Q, G)


def in_blocks(distance_QG):
    """Three queries at a time."""
    stops = [*range(3, len(distance_QG), 3), len(distance_QG)]
    return [(slice(start, stop), distance_QG[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)]


def by_sorting(distance_QG, labels, nearest):
    """The nearest columns with their distances, and (query, rank) of each match."""
    columns, matches = [], []
    for query, distance_G in enumerate(distance_QG):
        order = sorted(range(G), key=lambda column: (distance_G[column], column))
        columns.append(order[:nearest])
        listed = 0
        for column in order:
            same_pid = labels.gallery_pid[column] == labels.query_pid[query]
            is_match = same_pid and labels.gallery_camid[column] != labels.query_camid[query]
            listed += is_match or not same_pid
            if is_match:
                matches.append((query, listed))
    return columns, np.take_along_axis(distance_QG, np.array(columns), 1).tolist(), matches


def kept(result):
    matches = zip(result.query_M.tolist(), result.rank_M.tolist(), strict=True)
    return result.nearest_QK.tolist(), result.distance_QK.tolist(), list(matches)


@pytest.mark.parametrize("few", [0, 256], ids=["sorted", "counted"])
@pytest.mark.parametrize("nearest", [1, 7, 41, 50])
def test_agrees_with_a_sort_per_query(monkeypatch, nearest, few):
    monkeypatch.setattr(ranking, "_FEW_IMAGES", few)
    for seed in range(3):
        distance_QG, labels = tied_case(seed)
        result = rank(in_blocks(distance_QG), labels, nearest)
        assert kept(result) == by_sorting(distance_QG, labels, nearest)
        backwards = labels._replace(gallery_pid=labels.gallery_pid[::-1])
        assert kept(result) != by_sorting(distance_QG, backwards, nearest)  # the negative control


def test_metrics_and_nearest_can_be_had_alone():
    distance_QG, labels = tied_case(0)
    both = rank(in_blocks(distance_QG), labels, 4)
    assert metrics_of(rank(in_blocks(distance_QG), labels)) == metrics_of(both)
    nearest = rank(in_blocks(distance_QG), nearest=4)
    assert nearest.nearest_QK.tolist() == both.nearest_QK.tolist() and len(nearest.query_M) == 0
    assert rank(in_blocks(distance_QG), labels).nearest_QK.shape == (Q, 0)


def test_nothing_to_rank():
    empty = rank(in_blocks(np.empty((0, G))), nearest=3)
    assert len(empty.nearest_QK) == 0
    no_gallery = rank(in_blocks(np.empty((Q, 0))), nearest=3)
    assert no_gallery.nearest_QK.shape == (Q, 0)


def test_the_most_shared_entry():
    assert ranking.most_shared(np.array([1, 3, 3]), np.array([1, 2, 2, 2, 3, 3])) == 2
    assert ranking.most_shared(np.array([9]), np.array([1, 2])) == 0
