import html
import re
import sys
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny_run import rows, tiny_config

pytest.importorskip("jinja2", reason="the report is a jinja2 template")

from small_report import ANGLES, HOSTILE, RECORDS, drawn, examined, run_data

from metabin_jax import cli
from metabin_jax.report import page
from metabin_jax.report.rho import layer_of


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


def test_the_page_says_all_of_it():
    text = page.render(run_data([examined()]))
    read = Page(text)
    plain = " ".join(html.unescape(re.sub("<[^>]*>", " ", text)).split())
    assert "R-1, % R-5, % R-10, % mAP, % mINP, % Queries d 0.0" in plain
    assert "41.7 [33.3, 50.0]" in plain  # the two persons, twice the one or twice the other
    assert "1 queries have no valid match and do not count d/lonely.png" in plain
    assert "TPR n/a at FAR n/a, threshold n/a (2 positive, 9 negative pairs). It takes 1,000 pairs" in plain
    assert "threshold" not in "".join(re.findall("<svg.*?</svg>", text, re.DOTALL))
    seen = read.frames[:5] if "camera 1" in read.frames[0][1] else read.frames[5:10]
    assert seen == [
        ["asked", "query: identity 1, camera 1", "? query id 1 camera 1"],
        ["same-camera", "same cam: identity 1, camera 1", "⊘ same cam 0.996 id 1 camera 1"],
        ["wrong", "wrong, rank 1: identity 2, camera 1", "✗ wrong rank 1 0.985 id 2 camera 1"],
        ["correct", "correct, rank 2: identity 1, camera 2", "✓ correct rank 2 0.940 id 1 camera 2"],
        ["wrong", "wrong, rank 3: identity 3, camera 2", "✗ wrong rank 3 0.866 id 3 camera 2"],
    ]


def test_pictures_are_upright_copies_and_a_lost_one_has_a_mark(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (800, 400)).save(tmp_path / "sideways.jpg", exif=exif)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    names = ["sideways.jpg", "broken.png", *["gone.png"] * 5]
    records = [record._replace(path=str(tmp_path / name)) for record, name in zip(RECORDS, names, strict=True)]
    text = page.render(run_data([examined(records)], file=lambda record: record.path))
    pictures = set(re.findall('src="data:image/jpeg;base64,([^"]*)"', text))
    assert [Image.open(BytesIO(b64decode(picture))).size for picture in pictures] == [(80, 160)]
    frames = Page(text).frames
    assert len(frames) == 3 * 2 * 5  # the two queries in each of three groups
    assert text.count('<p class="gone">cannot be read</p>') == len(frames) - 3  # all but the query of identity 1
    assert ["asked cannot be read ? query id 2 camera 2"] in frames


def test_each_image_is_opened_once(tmp_path):
    opened = []
    page.render(run_data([examined()], file=lambda record: opened.append(record) or drawn(record)))
    assert sorted(opened) == sorted([*RECORDS[:2], *RECORDS[3:]])


def test_the_table_of_rho_is_folded_under_its_summary():
    layers = [
        layer_of(("stem_norm",), np.array([0, 0.25])),
        layer_of(("head_norm",), np.array([1, 1, 1, 0.55, 0.5, 0])),
    ]
    text = page.render(run_data(layers=layers))
    section = text[text.index('id="rho"') : text.index('id="training"')]
    summary, table = section.split('<details class="group">')
    assert "Mean rho over 8 channels: 0.537. Exactly 0 (all instance normalisation): 25.0 %;" in summary
    assert "rho starts): 37.5 %" in summary and "<table" not in summary
    rows_of = [re.findall("<td.*?</td>", row) for row in re.findall("<tr>.*?</tr>", table, re.DOTALL)[1:]]
    assert [re.sub("<.*?>", "", cell) for cell in rows_of[1]] == [
        "0.675", "16.7", "", "", "", "", "", "33.3", "", "", "", "", "50.0", "6"
    ]  # fmt: skip
    assert [re.findall("--share: ([0-9.]*)", cell) for cell in rows_of[0][:4]] == [[], ["0.5"], [], []]
    assert len(rows_of) == 3  # with one of all layers


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
    text = page.render(run_data(layers=[layer_of(("backbone", "stem_norm"), np.array([0.5]))]))
    assert 'id="rho"' in text


def test_a_domain_without_a_valid_query():
    found = examined([RECORDS[2], *RECORDS[3:]], ANGLES[2:])
    text = page.render(run_data([found]))
    assert "Cumulative match characteristic: n/a" in text and "n/a, as no query has a valid match" in text
    assert text.count("<strong>n/a</strong>") == 5
    assert not re.search(r"\bnan\b", re.sub('base64,[^"]*', "", text))
    assert "<img" not in text


def test_a_domain_without_a_pair_that_counts():
    """One person on one camera."""
    text = page.render(run_data([examined([RECORDS[0], RECORDS[3]], ANGLES[[0, 3]])]))
    assert "Scores of pairs: n/a" in text and "Cumulative match characteristic: n/a" in text


def report(capsys, *arguments):
    status = cli.main(["report", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_report_of_a_real_run(capsys, straight):
    workdir, result = straight
    before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    assert report(capsys, f"--model={workdir}") == (0, f"{workdir}/report.html\n", "")
    text = (workdir / "report.html").read_text(encoding="utf-8")
    scores = result["targets"]["west"]
    for name in ("R-1", "R-5", "R-10", "mAP", "mINP"):
        assert f'data-label="{name}, %"><strong>{100 * scores[name]:.1f}</strong>' in text
    assert f"({rows(workdir)[-1]['base/triplet']:.3f} at last)" in text
    assert before == {path: path.read_bytes() for path in workdir.glob("*.json*")}
    assert sorted(path.suffix for path in workdir.iterdir() if "report" in path.name) == [".html"]
    assert "report.html exists: give --overwrite" in report(capsys, f"--model={workdir}")[2]
    assert report(capsys, f"--model={workdir}", "--overwrite")[0] == 0
    assert (workdir / "report.html").read_text(encoding="utf-8") == text


def test_numbers_are_those_that_evaluate_prints(capsys, straight, tmp_path):
    workdir, _ = straight
    assert cli.main(["evaluate", f"--model={workdir}"]) == 0
    printed = capsys.readouterr().out
    assert report(capsys, f"--model={workdir}", f"--output={tmp_path / 'page.html'}")[0] == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    (verification,) = re.findall("west: verification: (TPR .*)", printed)
    assert f"Verification: {verification}." in text
    shown = {f"{mean} {interval}" for mean, interval in re.findall("<strong>(.*?)</strong><small>(.*?)</small>", text)}
    estimates = re.findall(r"[0-9.]+ \[[0-9.]+, [0-9.]+\]", printed)
    assert len(estimates) == 2 and set(estimates) <= shown


def test_a_report_elsewhere_about_the_training_alone(capsys, straight, tmp_path):
    output = tmp_path / "page.html"
    assert report(capsys, f"--model={straight[0]}", f"--output={output}", "--config.data.eval_domains=")[0] == 0
    assert "No domain was evaluated" in output.read_text(encoding="utf-8")


def test_what_cannot_be_reported_is_one_sentence(capsys, straight, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((straight[0] / "config.json").read_text())
    run = f"--model={straight[0]}"
    for arguments, message in (
        ([], "the following arguments are required: --model"),
        (["--output=x"], "the following arguments are required: --model"),
        ([straight[0]], "the following arguments are required: --model"),
        ([f"--model={tmp_path / 'no'}"], "no does not exist: name a workdir of metabin train or a file of weights"),
        ([f"--model={tmp_path / 'run'}"], "holds no checkpoint: train there first"),
        ([run, "--outptu=x"], "there is no option '--outptu': did you mean --output?"),
        ([run, "--config.method=bn"], "config.method was fixed by the training"),
        ([run, f"--output={tmp_path}/page.html", "--config.data.eval_domains=moon"], "Domain 'moon' is not in"),
        (
            [run, f"--output={tmp_path}/page.html", "--config.data.path=/gone"],
            "without pictures, --config.data.eval_do",
        ),
        ([run, f"--output={tmp_path}"], "cannot be written: it is a folder"),
        ([run, f"--output={tmp_path}/no/page.html"], "cannot be written: there is no folder"),
    ):
        status, out, err = report(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
    for module in ("metabin_jax.report", "metabin_jax.report.page"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "the report needs jinja2: " in report(capsys, run, f"--output={tmp_path / 'new.html'}")[2]


def test_a_failure_leaves_the_page_before(straight, tmp_path, monkeypatch):
    output = tmp_path / "report.html"
    output.write_text("before")

    def full_disk(source, target):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    monkeypatch.setattr(page, "collect", lambda config, workdir: run_data())
    with pytest.raises(OSError, match="no space left"):
        page.write_report(tiny_config(tmp_path), straight[0], output)
    assert output.read_text() == "before"
