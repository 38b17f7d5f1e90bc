import json
import math
from dataclasses import replace

from metabin_jax.evaluation.protocols import load
from metabin_jax.evaluation.statistics import METRICS, Estimate, Summary
from metabin_jax.evaluation.tables import as_dict, console, markdown

ESTIMATE = Estimate(0.5012, 0.0301, 0.4449, 0.5577)
VIPER = Summary("viper", "shipped with metabin_jax", 10, 3158, 2, dict.fromkeys(METRICS, ESTIMATE))
TARGETS = [replace(VIPER, name=name, unmatched=0) for name in ("viper", "prid2011", "grid", "ilids")]
MEAN = replace(VIPER, name="mean", split_source="", estimates=dict.fromkeys(METRICS, ESTIMATE._replace(std=None)))
PAPER = load("paper")


def rows(text):
    """The cells of a Markdown table, header and ruler left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_markdown():
    """Ours and the paper's numbers never share a row, and each row says whose it is."""
    text = markdown(as_dict(PAPER, [VIPER]))
    ours, paper, resnet = rows(text)
    cell = "50.1 ± 3.0 [44.5, 55.8]"
    assert ours == ["viper", "ours", cell, cell, cell, cell, cell, "10", "3,158"]
    reported = ["56.9 ± 3.0", "76.7 ± 2.1", "82.0 ± 2.1", "66.0 ± 2.4", "-", "", ""]
    assert paper == ["viper", "paper (reported): MetaBIN, MobileNetV2 x1.4", *reported]
    assert resnet[:4] == ["viper", "paper (reported): MetaBIN, ResNet-50", "59.9", "-"]
    assert text.splitlines()[0] == "| target | result | R-1 | R-5 | R-10 | mAP | mINP | splits | queries |"


def test_mean_of_the_paper_only_beside_the_same_targets():
    whole = rows(markdown(as_dict(PAPER, [*TARGETS, MEAN])))
    assert [row[:3] for row in whole[-3:]] == [
        ["mean", "ours", "50.1 [44.5, 55.8]"],
        ["mean", "paper (reported): MetaBIN, MobileNetV2 x1.4", "64.7"],
        ["mean", "paper (reported): MetaBIN, ResNet-50", "66.0"],
    ]
    partly = rows(markdown(as_dict(PAPER, [*TARGETS[1:], MEAN])))
    assert [row[1] for row in partly if row[0] == "mean"] == ["ours"]


def test_notes():
    text = markdown(as_dict(PAPER, [VIPER]))
    assert "- splits of viper: shipped with metabin_jax\n" in text
    assert "- viper: 2 queries have no match and are left out\n" in text
    assert "- paper (reported): MetaBIN, MobileNetV2 x1.4: not measured here; Choi et al., CVPR 2021, Table 1" in text
    assert "DukeMTMC-reID was withdrawn by its authors" in text
    without = markdown(as_dict(load("paper_without_duke"), [replace(VIPER, unmatched=0)]))
    assert "withdrawn" not in without and "reported" not in without and "no match" not in without
    assert "splits of mean" not in markdown(as_dict(PAPER, [*TARGETS, MEAN]))


def test_console_has_the_same_cells_in_columns():
    text = console(as_dict(PAPER, [*TARGETS, MEAN]))
    table, notes = text.split("\n\n")
    header, *lines = table.splitlines()
    for line, cells in zip(lines, rows(markdown(as_dict(PAPER, [*TARGETS, MEAN]))), strict=True):
        assert line[: header.index("result")].strip() == cells[0]
        assert line[header.index("R-1") : header.index("R-5")].strip() == cells[2]
        assert line[header.index("splits") : header.index("queries")].strip() == cells[7]
    assert "splits of grid: shipped with metabin_jax" in notes and "|" not in table


def test_data_for_json():
    """Ours as fractions under `results`, the paper's in % under a name of their own; nan becomes null."""
    nothing = replace(VIPER, name="grid", estimates=dict.fromkeys(METRICS, Estimate(*[math.nan] * 4)))
    content = json.loads(json.dumps(as_dict(PAPER, [VIPER, nothing]), allow_nan=False))
    assert content["protocol"] == "paper"
    assert content["results"]["viper"]["mAP"] == {"mean": 0.5012, "std": 0.0301, "low": 0.4449, "high": 0.5577}
    assert content["results"]["viper"]["unmatched"] == 2 and content["results"]["viper"]["splits"] == 10
    assert content["results"]["grid"]["R-1"] == dict.fromkeys(("mean", "std", "low", "high"))
    mobilenet, _ = content["published_percent"]
    assert mobilenet["results"]["viper"]["R-1"] == [56.9, 3.0] and not mobilenet["results"]["mean"]
    assert as_dict(PAPER, TARGETS)["published_percent"][0]["results"]["mean"]["mAP"] == (72.3, None)
    assert mobilenet["label"].startswith("paper (reported)")
    assert content["notes"][1] == "splits of viper: shipped with metabin_jax"


def test_a_hostile_name_shows_as_it_is():
    """Its HTML, links and cells are texts; usual names and numbers are not touched."""
    name = "<img src=x onerror=alert(1)>|`a`*b*[c](http://d)\n# e\x1b[31m"
    summary = replace(VIPER, name=name, split_source=f"file of splits {name}")
    text = markdown(as_dict(load("paper"), [summary], ours=[name]))
    assert "<" not in text and "\x1b" not in text and "](" not in text.replace(r"\[c](", "")
    assert text.count("\n") == markdown(as_dict(load("paper"), [VIPER], ours=["x"])).count("\n") - 2
    header, _, ours = text.splitlines()[:3]
    assert header.count("|") == ours.replace(r"\|", "").count("|")
    assert r"&lt;img src=x onerror=alert(1)&gt;\|\`a\`\*b\*\[c](http://d) # e\x1b[31m".replace(r"\x", r"\\x") in text
    plain = replace(VIPER, name="my_set-2.0")
    assert "| my_set-2.0 | ours | 50.1 ± 3.0 [44.5, 55.8] |" in markdown(as_dict(load("paper"), [plain]))
