import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

pytest.importorskip("jinja2", reason="the report is a jinja2 template")

from small_report import ANGLES, RECORDS, at_angles, domain_of, examined, run_data

from metabin_jax import models
from metabin_jax.data.records import Record
from metabin_jax.evaluation import (
    QueryGallery,
    distance,
    query_expansion,
    query_gallery,
    rerank,
    reranking,
    targets,
    thresholds,
)
from metabin_jax.evaluation.statistics import summarise
from metabin_jax.evaluation.thresholds import verify
from metabin_jax.report import charts, domain, page
from metabin_jax.report.rho import layer_of, rho_layers
from metabin_jax.runtime.runlog import read_rows


def marks(found, query):
    """Of the ranked list of this query's path, in whatever group it stands."""
    (first, *_) = [ranked for group in found.lists.values() for ranked in group if ranked.query.path == query]
    return [(frame.record.path, frame.mark, frame.rank) for frame in first.frames]


def test_a_ranked_list_marks_what_counts():
    found = examined()
    assert marks(found, RECORDS[0].path) == [
        ("d/a.png", "same-camera", None),
        ("d/b.png", "wrong", 1),
        ("d/c.png", "correct", 2),
        ("d/d.png", "wrong", 3),
    ]
    assert marks(found, "d/second.png") == [
        ("d/d.png", "wrong", 1),
        ("d/c.png", "wrong", 2),
        ("d/b.png", "correct", 3),
        ("d/a.png", "wrong", 4),
    ]
    # Without cameras the nearest counts: the marks follow the protocol, and not the identities alone.
    assert marks(examined(policy="ignore"), RECORDS[0].path)[0] == ("d/a.png", "correct", 1)
    near = math.radians
    distances = {
        "cosine": [1 - math.cos(near(angle)) for angle in (5, 10, 20, 30)],
        "euclidean": [2 * math.sin(near(angle) / 2) for angle in (5, 10, 20, 30)],
    }
    for metric, expected in distances.items():
        best = examined(metric=metric).lists["best"][0]
        assert [frame.distance for frame in best.frames] == pytest.approx(expected)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_domain_is_ranked_once(monkeypatch, splits):
    """Re-ranking and the pass over its distances, per split; lists and histogram only read what they found."""
    counts = dict.fromkeys(("embed", "rerank", "rank", "scored_pairs"), 0)

    def counted(name, function):
        def call(*args, **settings):
            counts[name] += 1
            return function(*args, **settings)

        return call

    monkeypatch.setattr(reranking, "rerank", counted("rerank", reranking.rerank))
    monkeypatch.setattr(targets, "rank", counted("rank", targets.rank))
    monkeypatch.setattr(thresholds, "scored_pairs", counted("scored_pairs", thresholds.scored_pairs))
    embed = counted("embed", lambda rows: at_angles(ANGLES[rows]))
    found = domain_of(RECORDS, embed, [query_gallery(RECORDS)] * splits, rerank=True)
    page.render(run_data([found]))
    assert counts == {"embed": 1, "rerank": splits, "rank": splits, "scored_pairs": 1}


def test_the_lists_are_what_was_ranked():
    """By the re-ranked distances and by the expanded query, where those are asked for."""
    query, gallery = at_angles(ANGLES[:3]), at_angles(ANGLES[3:])
    plain = [frame.distance for frame in examined().lists["best"][0].frames]
    reranked = [frame.distance for frame in examined(rerank=True).lists["best"][0].frames]
    assert reranked == pytest.approx(sorted(rerank(query, gallery)[0]))
    expanded = examined(query_expansion=2)
    moved = distance(query_expansion(query, gallery, 2), gallery)[0]
    assert [frame.distance for frame in expanded.lists["best"][0].frames] == pytest.approx(sorted(moved))
    assert plain != pytest.approx(reranked) and plain != pytest.approx(sorted(moved))
    text = page.render(run_data([expanded]))
    assert "re-ranked" not in text and "cosine similarity, more is nearer" in text
    run = run_data([examined(rerank=True)])
    run.config["eval"]["rerank"] = True
    assert "re-ranked distance, less is nearer" in page.render(run)


def test_a_ranked_list_is_short_and_leaves_the_query_out():
    """Every image is a query: six of one identity and camera around the first, then one of another camera and many."""
    records = [Record(f"d/{k}.png", int(k > 7), int(k == 7), "d", "all") for k in range(30)]
    found = examined(records, np.arange(30))
    assert marks(found, "d/0.png") == [
        ("d/1.png", "same-camera", None),
        ("d/2.png", "same-camera", None),
        ("d/3.png", "same-camera", None),
        ("d/7.png", "correct", 1),
        *[(f"d/{k + 6}.png", "wrong", k) for k in range(2, 11)],
    ]


def test_the_groups_of_queries():
    precision = np.array([0.5, np.nan, 0.9, 0.1, 0.5, 0.3, 0.5, 1.0])
    groups = domain.choose_queries(precision)
    assert groups["worst"] == [3, 5, 0, 4]
    assert groups["best"] == [7, 2, 0, 4]
    assert len(set(groups["random"])) == 4 and 1 not in groups["random"]
    assert groups == domain.choose_queries(precision)
    assert list(domain.choose_queries(np.full(3, np.nan)).values()) == [[], [], []]


def test_the_numbers_of_a_domain():
    found = examined()
    assert domain.cmc(found.result)[[0, 1, 2, 49]].tolist() == [0, 0.5, 1, 1]
    (summary,) = summarise([found.result])
    assert (summary.queries, found.result.unmatched) == (2, ("d/lonely.png",))
    for name, mean in {"R-1": 0, "R-5": 1, "mAP": (1 / 2 + 1 / 3) / 2}.items():
        assert summary.estimates[name].mean == pytest.approx(mean)

    pairs = {"matches": [], "others": []}
    for query, query_angle in zip(RECORDS[:3], ANGLES[:3], strict=True):
        for image, angle in zip(RECORDS[3:], ANGLES[3:], strict=True):
            if image.pid != query.pid:
                pairs["others"].append(math.cos(math.radians(query_angle - angle)))
            elif image.camid != query.camid:
                pairs["matches"].append(math.cos(math.radians(query_angle - angle)))
    assert [len(values) for values in pairs.values()] == [2, 9]
    for counts, values in zip(domain.score_histogram(found.result.pairs), pairs.values(), strict=True):
        assert counts.tolist() == np.histogram(values, domain.SCORE_EDGES)[0].tolist()


def test_several_splits_are_averaged_and_the_first_is_shown():
    """In the second one the query of identity 2 has the gallery for itself, and finds its match first."""
    first = query_gallery(RECORDS)
    one = np.array([4]), first.gallery_pid[1:2], first.gallery_camid[1:2]
    second = QueryGallery(np.array([1]), one[0], np.array([2]), one[1], np.array([2]), one[2])
    found = domain_of(RECORDS, lambda rows: at_angles(ANGLES[rows]), [first, second], "drawn")
    assert domain.cmc(found.result)[:3].tolist() == [0.5, 0.75, 1]
    assert len(marks(found, "d/second.png")) == 4
    assert found.result.pairs.negative_B.sum() == 9  # of all pairs of the domain
    text = page.render(run_data([found]))
    assert "Of the first of 2 splits." in text and "and 1 unmatched" in text
    assert "<strong>50.0 ± 70.7</strong><small>[" in text and "Below each mean ± deviation over the splits is" in text


def test_scores_at_the_ends_have_a_bin():
    """Copies of one image, whose cosine rounds to more than 1, and its opposite."""
    feature = np.random.default_rng(0).normal(size=(1, 300)).astype(np.float32)
    split = query_gallery([Record(f"d/{k}", k, 0, "d", "query" if k < 2 else "gallery") for k in range(4)])
    _, pairs = verify(np.repeat(feature, 2, 0), np.concatenate([feature, -feature]), split.labels, 0.1, 100)
    matches, others = domain.score_histogram(pairs)
    assert (others[0], others[-1], others.sum(), matches.sum()) == (2, 2, 4, 0)


def test_the_threshold_is_marked_where_it_can_be_measured():
    rng = np.random.default_rng(0)
    records = [Record(f"d/{k}", k % 20, k // 20, "d", "all") for k in range(60)]
    splits = [query_gallery(records)]
    found = domain_of(records, lambda rows: rng.normal(size=(60, 8)), splits)
    drawn = page.score_chart(found)
    assert drawn.mark.text == f"threshold {found.result.verification.threshold:.3f}"
    assert drawn.mark.text in page.render(run_data([found]))
    occupied = np.flatnonzero(sum(domain.score_histogram(found.result.pairs)))
    low, high = domain.SCORE_EDGES[occupied[[0, -1]]]
    share = (found.result.verification.threshold - low) / (high + 0.02 - low)
    assert drawn.mark.at == pytest.approx(charts.LEFT + share * (charts.RIGHT - charts.LEFT))


def test_training_curves():
    logged = [
        {"step": k, "base/cross_entropy": 4 - k, "rho/head": 1.0, "rho/stem": 0.5, "images_per_second": 9.0}
        for k in (1, 2, 3)
    ]
    logged[1]["base/cross_entropy"] = math.nan
    layers = [layer_of(("backbone", name), np.array([0.5])) for name in ("stem_norm", "head_norm")]
    base, rho, speed = page.training_charts(
        run_data(rows=[*logged, {"step": 3, "source_mAP": math.nan}], layers=layers)
    )
    assert [base.title, rho.title, speed.title] == ["Base losses", "Balance rho per stage", "Speed"]
    assert [line.name for line in rho.lines] == ["rho/stem", "rho/head"]  # as in the net
    left, right, top, bottom = charts.LEFT, charts.RIGHT, charts.TOP, charts.BOTTOM
    third = bottom - (bottom - top) / 3
    assert base.lines == [("base/cross_entropy", f"M{left:.1f} {top:.1f}h0M{right:.1f} {third:.1f}h0", "1.000")]
    assert (rho.lines[0].last, speed.lines[0].last) == ("0.500", "9")
    assert "logged value" not in base.caption
    (long,) = page.training_charts(run_data(rows=[{"step": k, "inner/clipped": 0.0} for k in range(1200)]))
    assert long.lines[0].path.count("L") == 399
    assert "Every 3th logged value" not in long.caption and "One logged value in 3 is drawn." in long.caption


def test_axes_start_at_zero_unless_a_value_is_negative():
    def axis(*values, **settings):
        drawn = charts.chart("", "", [("a", range(len(values)), values)], "", "", **settings)
        return {tick.text: tick.at for tick in drawn.y_ticks}

    assert axis(7.5, 8.0)["0"] == axis(0.0, 0.0)["0"] == charts.BOTTOM
    assert axis(-1.0, 3.0)["-1"] == charts.BOTTOM and axis(-3.0, -1.0)["0"] == charts.TOP
    assert axis(0.9, 0.95, y_range=(0, 1))["1"] == charts.TOP
    curves = [{"step": 1, "rho/stem": 0.97, "inner/clipped": 0.125, "source_mAP": 0.5}]
    rho, clipped, held_out = page.training_charts(run_data(rows=curves))
    assert [tick.text for tick in rho.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert (clipped.lines[0].last, held_out.lines[0].last) == ("12.5", "50.0")  # in %
    for drawn in (rho, clipped, held_out):
        assert drawn.y_ticks[0] == (charts.BOTTOM, "0")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.31, 0.97, [0.4, 0.6, 0.8]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (7, 12, [7, 8, 9, 10, 11, 12]),
    ],
)
def test_ticks(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_the_rho_of_a_layer():
    layer = layer_of(("backbone", "stage2_block0", "expand_norm"), np.array([0, 0, 1, 0.05, 0.999, 0.1, 1, 1]))
    assert layer.name == "stage2.0 expand"
    assert layer.counts.tolist() == [2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 3]
    assert layer.mean == pytest.approx((3 + 0.05 + 0.999 + 0.1) / 8)


@pytest.mark.parametrize("norm", ["metabin", "bin", "bn"])
def test_the_layers_stand_in_the_order_of_the_net(norm):
    model = models.create("tiny", 3, norm=norm)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
    layers = rho_layers(model, {"rho": {}} | variables, (32, 32))
    assert sum(int(layer.counts.sum()) for layer in layers) == sum(
        rho.size for rho in flatten_dict(variables.get("rho", {})).values()
    )
    if norm != "bn":
        names = [layer.name for layer in layers]
        assert names[:4] == ["stem", "stage2.0 expand", "stage2.0 depthwise", "stage2.0 project"]
        assert names[-1] == "head"


def test_half_a_last_row_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_text(json.dumps({"step": 1, "base/triplet": 0.5}) + '\n{"step": 2, "base/tri')
    assert read_rows(path) == [{"step": 1, "base/triplet": 0.5}]


def test_a_damaged_row_is_one_sentence(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "base/triplet": }\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged \(.*\): remove the line"):
        read_rows(path)
