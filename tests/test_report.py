import html
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_run import rows, tiny_config

pytest.importorskip("jinja2", reason="the report is a jinja2 template")

from metabin_jax import cli, models
from metabin_jax.benchmark.statistics import summarise
from metabin_jax.config import metabin
from metabin_jax.data.records import Record
from metabin_jax.evaluation import distance, query_expansion, query_gallery, rerank
from metabin_jax.report import charts, data, domain, page
from metabin_jax.runlog import settings

HOSTILE = "<script>alert(1)</script>\"'&é漢\udcff"


class Page(HTMLParser):
    """The elements of a page with their attributes, and of each image of a ranked list its class, alt and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.frames, self._item = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "li" and "class" in attributes:
            self._item = [attributes["class"]]
            self.frames.append(self._item)
        elif tag == "img":
            self._item += [attributes["alt"], ""]

    def handle_data(self, text):
        if self._item and text.strip():
            self._item[-1] = f"{self._item[-1]} {' '.join(text.split())}".strip()

    def handle_endtag(self, tag):
        if tag == "li":
            self._item = None


def at_angles(degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


# Degrees. The queries: identity 1 on camera 1, identity 2 on camera 2, and one that has no match.
ANGLES = np.array([0, 90, 45, 5, 10, 20, 30])
RECORDS = [
    Record(f"d/{HOSTILE}.png", 1, 1, "d", "query"),
    Record("d/second.png", 2, 2, "d", "query"),
    Record("d/lonely.png", 9, 1, "d", "query"),
    Record("d/a.png", 1, 1, "d", "gallery"),
    Record("d/b.png", 2, 1, "d", "gallery"),
    Record("d/c.png", 1, 2, "d", "gallery"),
    Record("d/d.png", 3, 2, "d", "gallery"),
]


def examined(records=RECORDS, angles=ANGLES, **settings):
    config = metabin().eval
    config.update(settings)
    splits = [query_gallery(records, config.policy)]
    return domain.examine(records, lambda rows: at_angles(angles[rows]), splits, "", config)


def run_data(domains=(), **changes):
    """A run that was never trained."""
    config = tiny_config("/data")
    config.data.train_domains = ("east", "north")
    run = data.RunData(
        name="mine", config=settings(config), starts=[], rows=[], step=3, source_mAP=None, layers=[],
        domains=list(domains), summaries=summarise([each.result for each in domains]) if domains else [],
        image=lambda name, row: np.full((8, 4, 3), 4 * row, np.uint8),
    )  # fmt: skip
    return replace(run, **changes)


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
    for name, values in pairs.items():
        assert getattr(found.scores, name).tolist() == np.histogram(values, found.scores.edges)[0].tolist()


def test_scores_at_the_ends_have_a_bin():
    """Copies of one image, whose cosine rounds to more than 1, and its opposite."""
    feature = np.random.default_rng(0).normal(size=(1, 300)).astype(np.float32)
    split = query_gallery([Record(f"d/{k}", k, 0, "d", "query" if k < 2 else "gallery") for k in range(4)])
    scores = domain.score_histogram(np.repeat(feature, 2, 0), np.concatenate([feature, -feature]), split)
    assert (scores.others[0], scores.others[-1], scores.others.sum(), scores.matches.sum()) == (2, 2, 4, 0)


def test_the_page_says_all_of_it():
    text = page.render(run_data([examined()]))
    read = Page(text)
    plain = " ".join(html.unescape(re.sub("<[^>]*>", " ", text)).split())
    assert "R-1, % R-5, % R-10, % mAP, % mINP, % Queries d 0.0" in plain
    assert "41.7 33.3 – 50.0" in plain  # the two persons, twice the one or twice the other
    assert "1 queries have no valid match and do not count d/lonely.png" in plain
    assert "TPR n/a at FAR n/a, threshold n/a, 2 positive and 9 negative pairs. It takes 1,000 pairs" in plain
    assert "threshold" not in "".join(re.findall("<svg.*?</svg>", text, re.DOTALL))
    seen = read.frames[:5] if "camera 1" in read.frames[0][1] else read.frames[5:10]
    assert seen == [
        ["asked", "query: identity 1, camera 1", "? query id 1 camera 1"],
        ["same-camera", "same cam: identity 1, camera 1", "⊘ same cam 0.996 id 1 camera 1"],
        ["wrong", "wrong, rank 1: identity 2, camera 1", "✗ wrong rank 1 0.985 id 2 camera 1"],
        ["correct", "correct, rank 2: identity 1, camera 2", "✓ correct rank 2 0.940 id 1 camera 2"],
        ["wrong", "wrong, rank 3: identity 3, camera 2", "✗ wrong rank 3 0.866 id 3 camera 2"],
    ]


def test_the_threshold_is_marked_where_it_can_be_measured():
    rng = np.random.default_rng(0)
    records = [Record(f"d/{k}", k % 20, k // 20, "d", "all") for k in range(60)]
    splits = [query_gallery(records)]
    found = domain.examine(records, lambda rows: rng.normal(size=(60, 8)), splits, "", metabin().eval)
    drawn = page.score_chart(found)
    assert drawn.mark.text == f"threshold {found.result.verification.threshold:.3f}"
    assert drawn.mark.text in page.render(run_data([found]))
    low, high = (found.scores.edges[k] for k in np.flatnonzero(found.scores.matches + found.scores.others)[[0, -1]])
    share = (found.result.verification.threshold - low) / (high + 0.02 - low)
    assert drawn.mark.at == pytest.approx(charts.LEFT + share * (charts.RIGHT - charts.LEFT))


def test_nothing_comes_from_elsewhere_and_names_stay_text():
    records = [record._replace(domain=HOSTILE[:-1]) for record in RECORDS]
    records[2] = records[2]._replace(path=HOSTILE)
    run = run_data(name=HOSTILE, domains=[examined(records)], rows=[{"step": 1, f"base/{HOSTILE}": 1.0}])
    run.config["data"] |= {"path": HOSTILE, "train_domains": [HOSTILE]}
    run = replace(run, starts=[{"git": None, "command": [HOSTILE], "versions": {"jax": HOSTILE}}])
    text = page.render(run)
    text.encode("utf-8")
    read = Page(text)
    assert [attributes for tag, attributes in read.elements if tag == "script"] == [{}]
    assert text.count("<script>alert") == 0 and text.count("&lt;script&gt;alert(1)") > 8
    assert "é漢?" in text
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", text)
    assert {tag for tag, _ in read.elements} & {"link", "img", "iframe", "object"} == {"link", "img"}


def test_a_run_without_domains_rho_or_rows():
    text = page.render(run_data())
    assert "No domain was evaluated" in text and "metrics.jsonl holds no row" in text
    assert 'id="rho"' not in text and 'id="metrics"' not in text and "<img" not in text
    text = page.render(run_data(layers=[data.layer_of(("backbone", "stem_norm"), np.array([0.5]))]))
    assert 'id="rho"' in text


def test_a_domain_without_a_valid_query():
    found = examined([RECORDS[2], *RECORDS[3:]], ANGLES[2:])
    text = page.render(run_data([found]))
    assert "Cumulative match characteristic: n/a" in text and "n/a, as no query has a valid match" in text
    assert text.count("<strong>n/a</strong>") == 5
    assert "nan" not in re.sub('base64,[^"]*', "", text)
    assert "<img" not in text


def test_training_curves():
    logged = [
        {"step": k, "base/cross_entropy": 4 - k, "rho/head": 1.0, "rho/stem": 0.5, "images_per_second": 9.0}
        for k in (1, 2, 3)
    ]
    logged[1]["base/cross_entropy"] = math.nan
    layers = [data.layer_of(("backbone", name), np.array([0.5])) for name in ("stem_norm", "head_norm")]
    base, rho, speed = page.training_charts(
        run_data(rows=[*logged, {"step": 3, "source_mAP": math.nan}], layers=layers)
    )
    assert [base.title, rho.title, speed.title] == ["Base losses", "Balance rho per stage", "Speed"]
    assert [line.name for line in rho.lines] == ["rho/stem", "rho/head"]  # as in the net
    left, right, top, bottom = charts.LEFT, charts.RIGHT, charts.TOP, charts.BOTTOM
    assert base.lines == [("base/cross_entropy", f"M{left:.1f} {top:.1f}h0M{right:.1f} {bottom:.1f}h0", "1")]
    assert "logged value" not in base.caption
    (long,) = page.training_charts(run_data(rows=[{"step": k, "inner/clipped": 0.0} for k in range(1200)]))
    assert long.lines[0].path.count("L") == 399
    assert "Every 3th logged value" not in long.caption and "One logged value in 3 is drawn." in long.caption


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
    layer = data.layer_of(("backbone", "stage2_block0", "expand_norm"), np.array([0, 0, 1, 0.05, 0.999, 0.1, 1, 1]))
    assert layer.name == "stage2.0 expand"
    assert layer.counts.tolist() == [2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 3]
    assert layer.mean == pytest.approx((3 + 0.05 + 0.999 + 0.1) / 8)


@pytest.mark.parametrize("norm", ["metabin", "bin", "bn"])
def test_the_layers_stand_in_the_order_of_the_net(norm):
    model = models.create("tiny", 3, norm=norm)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
    layers = data.rho_layers(model, {"rho": {}} | variables, (32, 32))
    assert sum(int(layer.counts.sum()) for layer in layers) == sum(
        rho.size for rho in flatten_dict(variables.get("rho", {})).values()
    )
    if norm != "bn":
        names = [layer.name for layer in layers]
        assert names[:4] == ["stem", "stage2.0 expand", "stage2.0 depthwise", "stage2.0 project"]
        assert names[-1] == "head"


def report(capsys, *arguments):
    status = cli.main(["report", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_report_of_a_real_run(capsys, straight):
    workdir, result = straight
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    assert report(capsys, workdir) == (0, f"{workdir}/report.html\n", "")
    text = (workdir / "report.html").read_text(encoding="utf-8")
    scores = result["targets"]["west"]
    for name in ("R-1", "R-5", "R-10", "mAP", "mINP"):
        assert f'data-label="{name}, %"><strong>{100 * scores[name]:.1f}</strong>' in text
    assert f"({rows(workdir)[-1]['base/triplet']:.4g} at last)" in text
    assert before == {path: path.read_bytes() for path in workdir.glob("*.json*")}
    assert sorted(path.suffix for path in workdir.iterdir() if "report" in path.name) == [".html"]


def test_a_report_elsewhere_about_the_training_alone(capsys, straight, tmp_path):
    output = tmp_path / "page.html"
    assert report(capsys, straight[0], f"--output={output}", "--config.data.eval_domains=()")[0] == 0
    assert "No domain was evaluated" in output.read_text(encoding="utf-8")


def test_what_cannot_be_reported_is_one_sentence(capsys, straight, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((straight[0] / "config.json").read_text())
    for arguments, message in (
        ([], "RUN is missing"),
        (["--output=x"], "RUN is missing"),
        ([tmp_path / "no"], "no/config.json does not exist: name a workdir of metabin train"),
        ([tmp_path / "run"], "holds no checkpoint: train there first"),
        ([straight[0], "--outptu=x"], "'--outptu=x' is not an option"),
        ([straight[0], "--config.method=bn"], "config.method was fixed by the training"),
        ([straight[0], "--config.data.eval_domains=moon"], "Domain 'moon' is not in"),
        ([straight[0], f"--output={tmp_path}"], "is a folder: --output must name a file"),
        ([straight[0], f"--output={tmp_path}/no/page.html"], "no does not exist: make it, or choose another"),
    ):
        status, out, err = report(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
    for module in ("metabin_jax.report", "metabin_jax.report.page"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "the report needs jinja2: pip install 'metabin_jax[report]'" in report(capsys, straight[0])[2]


def test_a_failure_leaves_the_page_before(straight, tmp_path, monkeypatch):
    output = tmp_path / "report.html"
    output.write_text("before")

    def full_disk(source, target):
        raise OSError("no space left")

    monkeypatch.setattr("metabin_jax.runlog.os.replace", full_disk)
    monkeypatch.setattr(page, "collect", lambda config, workdir: run_data())
    with pytest.raises(OSError, match="no space left"):
        page.write_report(tiny_config(tmp_path), straight[0], output)
    assert output.read_text() == "before"


def test_half_a_last_row_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert data.read_rows(path) == []
    path.write_text(json.dumps({"step": 1, "base/triplet": 0.5}) + '\n{"step": 2, "base/tri')
    assert data.read_rows(path) == [{"step": 1, "base/triplet": 0.5}]
