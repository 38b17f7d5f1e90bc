"""A target's splits from pictures whose answer a test can draw, and from features of full-size sets."""

import numpy as np
import pytest
from small_sets import prid2011, viper

from metabin_jax.data.records import Record
from metabin_jax.data.sets.splits import split_source
from metabin_jax.evaluation import query_gallery, rank_metrics, retrieval_metrics
from metabin_jax.evaluation import targets as run
from metabin_jax.evaluation.distances import distance_blocks
from metabin_jax.evaluation.protocol import target_splits
from metabin_jax.evaluation.reranking import query_expansion, rerank
from metabin_jax.evaluation.statistics import METRICS, summarise
from metabin_jax.evaluation.targets import evaluate_target


def domain(*rows, name="shop"):
    return [Record(f"{name}/{i}.png", pid, camid, name, split) for i, (pid, camid, split) in enumerate(rows)]


def painted(*colours):
    return np.stack([np.full((4, 2, 3), colour, np.uint8) for colour in colours])


RED, GREEN, BLUE, DARK_RED = (250, 0, 0), (0, 250, 0), (0, 0, 250), (200, 0, 0)


def evaluated(images, records, policy="cross-camera", **options):
    """With an image's mean colour, normalised as for a net, as its feature."""
    colour_ND = ((images.mean((1, 2)) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    splits = [query_gallery(records, policy)]
    return evaluate_target("shop", records, lambda rows: colour_ND[rows], splits, policy=policy, **options)


def test_ranks_and_names_queries_without_a_match():
    records = domain(
        (9, 1, "train"),
        (1, 1, "query"),
        (2, 1, "gallery"),
        (1, 2, "gallery"),
        (3, 1, "query"),
        (0, 3, "gallery"),
    )
    images = painted(GREEN, RED, GREEN, DARK_RED, BLUE, BLUE)
    result = evaluated(images, records)
    assert result.target == "shop"
    assert result.metrics[0].cmc[1] == result.metrics[0].mAP == 1
    assert result.metrics[0].num_valid == 1
    assert result.unmatched == ("shop/4.png",)

    # Negative control: other pictures for the same records must not score the same.
    shuffled = evaluated(painted(GREEN, RED, DARK_RED, GREEN, BLUE, BLUE), records)
    assert shuffled.metrics[0].cmc[1] == 0


def test_policies_differ_on_a_one_camera_domain():
    records = domain((1, 1, "all"), (1, 1, "all"), (2, 1, "all"))
    images = painted(RED, DARK_RED, BLUE)
    across = evaluated(images, records)
    assert (across.metrics[0].num_valid, len(across.unmatched)) == (0, 3)
    ignored = evaluated(images, records, policy="ignore")
    assert (ignored.metrics[0].num_valid, ignored.unmatched) == (2, ("shop/2.png",))
    assert ignored.metrics[0].cmc[1] == 1


def test_the_query_itself_is_never_its_own_match():
    records = domain((1, 1, "all"), (1, 2, "all"), (2, 1, "all"), (2, 2, "all"))
    images = painted(RED, GREEN, DARK_RED, (0, 200, 0))
    for policy in ("cross-camera", "ignore"):
        assert evaluated(images, records, policy=policy).metrics[0].cmc[1] == 0


def test_options_reach_the_metrics():
    records = domain((1, 1, "query"), (2, 2, "gallery"), (1, 2, "gallery"))
    images = painted((120, 130, 140), (118, 130, 140), (180, 200, 220))
    options = {"policy": "cross-camera", "metric": "euclidean"}
    (measured,) = evaluated(images, records, **options).metrics
    assert measured.cmc == {1: 0, 5: 1, 10: 1} and measured.first_rank_Q == 2


def colourful(split_of=("query", "gallery")):
    """Records of 5 identities seen by 2 cameras, their painted images, and their colours after normalisation."""
    rng = np.random.default_rng([2])
    base = rng.integers(40, 215, (5, 3))
    rows = [(pid, camid, split_of[camid - 1]) for pid in range(5) for camid in (1, 1, 2, 2)]
    colours = np.array([np.clip(base[pid] + rng.integers(-90, 91, 3), 0, 255) for pid, _, _ in rows])
    feature_ND = ((colours / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    return domain(*rows), painted(*colours.tolist()), feature_ND


@pytest.mark.parametrize(
    "options", [{}, {"rerank": True}, {"query_expansion": 3}, {"rerank": True, "query_expansion": 3}], ids=str
)
@pytest.mark.parametrize("split_of", [("query", "gallery"), ("all", "all")], ids=["marked", "unmarked"])
def test_the_steps_between_embedding_and_ranking(options, split_of):
    records, images, feature_ND = colourful(split_of)
    result = evaluated(images, records, **options)
    pid, camid = np.array([r.pid for r in records]), np.array([r.camid for r in records])
    is_query, is_gallery = (np.array([r.split in (kind, "all") for r in records]) for kind in ("query", "gallery"))
    query_QD, gallery_GD = feature_ND[is_query], feature_ND[is_gallery]
    labels = pid[is_query], pid[is_gallery], camid[is_query], camid[is_gallery]
    others_GD = None if split_of == ("all", "all") else gallery_GD
    if "query_expansion" in options:
        query_QD = query_expansion(query_QD, others_GD, 3)
    unit_QD, unit_GD = (x / np.linalg.norm(x, axis=1)[:, None] for x in (query_QD, gallery_GD))
    distance_QG = rerank(query_QD, others_GD) if "rerank" in options else 1 - unit_QD @ unit_GD.T
    expected = rank_metrics(distance_QG, *labels)
    assert result.metrics[0] == expected
    assert result.metrics[0].first_rank_Q.tolist() == expected.first_rank_Q.tolist()
    plain = retrieval_metrics(feature_ND[is_query], feature_ND[is_gallery], *labels)
    if options:  # else nothing would be shown
        assert result.metrics[0].mAP != plain.mAP

    # Whatever is done for the ranking, verification compares the embeddings: by loops over all pairs.
    cosine = feature_ND @ feature_ND.T / np.outer(*[np.linalg.norm(feature_ND, axis=1)] * 2)
    pairs = [(i, j) for i in np.flatnonzero(is_query) for j in np.flatnonzero(is_gallery)]
    verified = result.verification
    assert verified.num_positive == sum(pid[i] == pid[j] and camid[i] != camid[j] for i, j in pairs)
    negative = sorted(cosine[i, j] for i, j in pairs if pid[i] != pid[j])
    assert (verified.num_negative, np.isnan(verified.tpr)) == (len(negative), True)  # far * negatives < 1

    loose = evaluated(images, records, **options, far=0.1).verification
    assert loose.threshold == pytest.approx(negative[-1 - len(negative) // 10], abs=1e-6)
    positive = [cosine[i, j] for i, j in pairs if pid[i] == pid[j] and camid[i] != camid[j]]
    assert loose.tpr == pytest.approx(np.mean(np.array(positive) > loose.threshold), abs=1e-9)


@pytest.mark.parametrize("options", [{"rerank": True}, {"query_expansion": 1}], ids=str)
def test_steps_that_know_only_directions_refuse_lengths(options):
    records, images, _ = colourful()
    with pytest.raises(ValueError, match="need the metric cosine, not 'euclidean'"):
        evaluated(images, records, metric="euclidean", **options)


def over_splits(target, records, embed, **options):
    return evaluate_target(target, records, embed, target_splits(target, records), split_source(target), **options)


def features(records, noise):
    """A direction per person, and noise per image; the same whatever the order of the rows."""
    rng = np.random.default_rng(0)
    of_person = {pid: rng.normal(size=16) for pid in sorted({record.pid for record in records})}
    return np.stack([of_person[record.pid] for record in records]) + noise * rng.normal(size=(len(records), 16))


def test_evaluate_target_against_the_whole_matrix():
    """Every split against ranks from one distance matrix of all images; the images are embedded once."""
    records, calls = prid2011(), []
    feature_ND = features(records, noise=0.5)

    def embed(rows):
        calls.append(rows)
        return feature_ND[rows]

    measured = over_splits("prid2011", records, embed, metric="euclidean")
    (rows,) = calls
    assert rows.tolist() == list(range(len(records)))  # the splits need fewer, verification all
    distance_NN = np.linalg.norm(feature_ND[:, None] - feature_ND, axis=2)
    assert len(measured.metrics) == 10 and measured.split_source == "shipped with metabin_jax"
    for split, metrics in zip(measured.splits, measured.metrics, strict=True):
        distance_QG = distance_NN[split.query_row][:, split.gallery_row]
        expected = rank_metrics(distance_QG, *split[2:])
        np.testing.assert_array_equal(metrics.first_rank_Q, expected.first_rank_Q)
        assert 0.3 < metrics.cmc[1] < 0.95 and metrics.mAP == pytest.approx(metrics.mINP)
    cosine = over_splits("prid2011", records, embed)
    assert [m.mAP for m in cosine.metrics] != [m.mAP for m in measured.metrics]


def test_perfect_features_find_everybody():
    records = viper()
    measured = over_splits("viper", records, lambda rows: features(records, noise=0)[rows])
    (summary,) = summarise([measured])
    assert all(summary.estimates[metric] == (1, 0, 1, 1) for metric in METRICS)
    assert summary.queries == 3160


def test_a_set_with_one_split():
    records = [Record(f"{n}.jpg", n % 3, n, "market1501", "query" if n < 3 else "gallery") for n in range(9)]
    measured = over_splits("market1501", records, lambda rows: features(records, noise=0)[rows])
    assert len(measured.metrics) == 1 and measured.metrics[0].mAP == 1
    assert measured.split_source == ""
    assert (measured.verification.num_positive, measured.verification.num_negative) == (6, 3 * 4)


def test_a_gallery_in_one_piece_is_not_copied(monkeypatch):
    """But one in another order, or with gaps, is."""
    feature_ND = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    seen = []

    def blocks(query_QD, gallery_GD, metric):
        seen.append((gallery_GD, np.shares_memory(gallery_GD, feature_ND)))
        return distance_blocks(query_QD, gallery_GD, metric)

    monkeypatch.setattr(run, "distance_blocks", blocks)
    for splits in ("qqqgggggg", "qgqgqgggg"):
        names = {"q": "query", "g": "gallery"}
        records = [Record(f"{n}.jpg", n % 3, n, "shop", names[split]) for n, split in enumerate(splits)]
        (split,) = target_splits("shop", records)
        evaluate_target("shop", records, lambda rows: feature_ND, [split])
        assert np.array_equal(seen[-1][0], feature_ND[split.gallery_row])
    assert [shares for _, shares in seen] == [True, False]
