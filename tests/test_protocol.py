import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from metabin_jax.data.records import Record
from metabin_jax.evaluation import rank_metrics, retrieval_metrics
from metabin_jax.evaluation.protocol import evaluate_domain, query_gallery
from metabin_jax.evaluation.reranking import query_expansion, rerank


class MeanColour(nn.Module):
    """Embeds an image as its mean colour, so that a test can draw the answer."""

    def __call__(self, image_NHWC, train):
        colour_ND = image_NHWC.mean((1, 2))
        return jnp.zeros_like(colour_ND), colour_ND, colour_ND


def domain(*rows, name="shop"):
    return [Record(f"{name}/{i}.png", pid, camid, name, split) for i, (pid, camid, split) in enumerate(rows)]


def painted(*colours):
    return np.stack([np.full((4, 2, 3), colour, np.uint8) for colour in colours])


RED, GREEN, BLUE, DARK_RED = (250, 0, 0), (0, 250, 0), (0, 0, 250), (200, 0, 0)


def test_marked_records_keep_their_marks_and_others_stay_out():
    records = domain((1, 1, "query"), (9, 1, "train"), (1, 2, "gallery"), (2, 12, "gallery"), (5, 1, "all"))
    result = query_gallery(records)
    assert result.query_row.tolist() == [0]
    assert result.gallery_row.tolist() == [2, 3]
    assert result.gallery_pid.tolist() == [1, 2]
    assert result.gallery_camid.tolist() == [2, 12]


@pytest.mark.parametrize("split", ["all", "train"])
def test_without_marks_every_image_is_both(split):
    result = query_gallery(domain((1, 1, split), (1, 2, split), (99999, 1, split)))
    assert result.query_row.tolist() == result.gallery_row.tolist() == [0, 1, 2]
    assert result.query_camid.tolist() == result.gallery_camid.tolist() == [1, 2, 1]


def test_identity_0_is_one_like_any_other():
    """Market-1501 marks its distractors, pid 0, as gallery; elsewhere 0 may well be a person."""
    marked = query_gallery(domain((1, 1, "query"), (0, 2, "gallery"), (1, 2, "gallery")))
    assert (marked.query_pid.tolist(), marked.gallery_pid.tolist()) == ([1], [0, 1])
    unmarked = query_gallery(domain((0, 1, "all"), (0, 2, "all"), (1, 2, "all")))
    assert unmarked.query_pid.tolist() == unmarked.gallery_pid.tolist() == [0, 0, 1]


def test_policy_ignore_numbers_the_images():
    records = domain((1, 1, "all"), (1, 1, "all"), (2, 1, "all"))
    result = query_gallery(records, "ignore")
    assert result.query_camid.tolist() == result.gallery_camid.tolist() == [0, 1, 2]


def test_policy_ignore_knows_an_image_listed_as_query_and_as_gallery():
    query = Record("a.png", 1, 1, "shop", "query")
    records = [query, query._replace(split="gallery"), Record("b.png", 1, 1, "shop", "gallery")]
    result = query_gallery(records, "ignore")
    assert result.query_camid.tolist() == [0]
    assert result.gallery_camid.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("records", "policy", "message"),
    [
        (domain((1, 1, "all")), "same-camera", "must be one of cross-camera, ignore, not 'same-camera'"),
        ([*domain((1, 1, "all"), name="b"), *domain((1, 1, "all"), name="a")], "ignore", r"\['a', 'b'\]"),
        ([], "ignore", "records hold none"),
        (domain((1, 1, "query")), "ignore", "domain 'shop' has no gallery image"),
        (domain((1, 1, "gallery")), "ignore", "domain 'shop' has no query image"),
    ],
)
def test_bad_input_is_named(records, policy, message):
    with pytest.raises(ValueError, match=message):
        query_gallery(records, policy)


def test_evaluate_domain_ranks_and_names_queries_without_a_match():
    records = domain(
        (9, 1, "train"),
        (1, 1, "query"),
        (2, 1, "gallery"),
        (1, 2, "gallery"),
        (3, 1, "query"),
        (0, 3, "gallery"),
    )
    images = painted(GREEN, RED, GREEN, DARK_RED, BLUE, BLUE)
    result = evaluate_domain(MeanColour(), {}, images, records)
    assert result.domain == "shop"
    assert result.metrics.cmc[1] == result.metrics.mAP == 1
    assert result.metrics.num_valid == 1
    assert result.unmatched == ("shop/4.png",)

    # Negative control: other pictures for the same records must not score the same.
    shuffled = evaluate_domain(MeanColour(), {}, painted(GREEN, RED, DARK_RED, GREEN, BLUE, BLUE), records)
    assert shuffled.metrics.cmc[1] == 0


def test_policies_differ_on_a_one_camera_domain():
    records = domain((1, 1, "all"), (1, 1, "all"), (2, 1, "all"))
    images = painted(RED, DARK_RED, BLUE)
    across = evaluate_domain(MeanColour(), {}, images, records)
    assert (across.metrics.num_valid, len(across.unmatched)) == (0, 3)
    ignored = evaluate_domain(MeanColour(), {}, images, records, policy="ignore")
    assert (ignored.metrics.num_valid, ignored.unmatched) == (2, ("shop/2.png",))
    assert ignored.metrics.cmc[1] == 1


def test_the_query_itself_is_never_its_own_match():
    records = domain((1, 1, "all"), (1, 2, "all"), (2, 1, "all"), (2, 2, "all"))
    images = painted(RED, GREEN, DARK_RED, (0, 200, 0))
    for policy in ("cross-camera", "ignore"):
        assert evaluate_domain(MeanColour(), {}, images, records, policy=policy).metrics.cmc[1] == 0


def test_options_reach_the_metrics():
    records = domain((1, 1, "query"), (2, 2, "gallery"), (1, 2, "gallery"))
    images = painted((120, 130, 140), (118, 130, 140), (180, 200, 220))
    options = {"policy": "cross-camera", "metric": "euclidean", "ranks": (1, 2), "batch_size": 2}
    assert evaluate_domain(MeanColour(), {}, images, records, **options).metrics.cmc == {1: 0, 2: 1}


def test_images_and_records_must_agree_in_number():
    with pytest.raises(ValueError, match="there are 1 images for 2 records"):
        evaluate_domain(MeanColour(), {}, painted(RED), domain((1, 1, "all"), (1, 2, "all")))


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
    result = evaluate_domain(MeanColour(), {}, images, records, **options)
    pid, camid = np.array([r.pid for r in records]), np.array([r.camid for r in records])
    is_query, is_gallery = (np.array([r.split in (kind, "all") for r in records]) for kind in ("query", "gallery"))
    query_QD, gallery_GD = feature_ND[is_query], feature_ND[is_gallery]
    labels = pid[is_query], pid[is_gallery], camid[is_query], camid[is_gallery]
    if "query_expansion" in options:
        query_QD = query_expansion(query_QD, gallery_GD, 3)
    unit_QD, unit_GD = (x / np.linalg.norm(x, axis=1)[:, None] for x in (query_QD, gallery_GD))
    distance_QG = rerank(query_QD, gallery_GD) if "rerank" in options else 1 - unit_QD @ unit_GD.T
    expected = rank_metrics(distance_QG, *labels)
    assert result.metrics == expected
    assert result.metrics.first_rank_Q.tolist() == expected.first_rank_Q.tolist()
    plain = retrieval_metrics(feature_ND[is_query], feature_ND[is_gallery], *labels)
    if options:  # else nothing would be shown
        assert result.metrics.mAP != plain.mAP

    # Whatever is done for the ranking, verification compares the embeddings: by loops over all pairs.
    cosine = feature_ND @ feature_ND.T / np.outer(*[np.linalg.norm(feature_ND, axis=1)] * 2)
    pairs = [(i, j) for i in np.flatnonzero(is_query) for j in np.flatnonzero(is_gallery)]
    verified = result.verification
    assert verified.num_positive == sum(pid[i] == pid[j] and camid[i] != camid[j] for i, j in pairs)
    negative = sorted(cosine[i, j] for i, j in pairs if pid[i] != pid[j])
    assert (verified.num_negative, np.isnan(verified.tpr)) == (len(negative), True)  # far * negatives < 1

    loose = evaluate_domain(MeanColour(), {}, images, records, **options, far=0.1).verification
    assert loose.threshold == pytest.approx(negative[-1 - len(negative) // 10], abs=1e-6)
    positive = [cosine[i, j] for i, j in pairs if pid[i] == pid[j] and camid[i] != camid[j]]
    assert loose.tpr == pytest.approx(np.mean(np.array(positive) > loose.threshold), abs=1e-9)


@pytest.mark.parametrize("options", [{"rerank": True}, {"query_expansion": 1}], ids=str)
def test_steps_that_know_only_directions_refuse_lengths(options):
    records, images, _ = colourful()
    with pytest.raises(ValueError, match="need the metric cosine, not 'euclidean'"):
        evaluate_domain(MeanColour(), {}, images, records, metric="euclidean", **options)
