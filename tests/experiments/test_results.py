"""The pages with results are what `python -m experiments.results` writes."""

from experiments.results import FOLDER, README, ROOT, committed, page, verdict, with_blocks

WORDS = (FOLDER / "page.md").read_text()


def test_no_number_is_typed():
    lines = committed()
    assert (ROOT / "docs/results.md").read_text() == page(lines, WORDS)
    readme = (ROOT / "README.md").read_text()
    assert with_blocks(readme, lines) == readme
    assert [found[1] for found in README.findall(readme)] == ["headline", "results"]


def test_another_row_makes_another_page():
    lines = committed()
    changed = [line | {"R-1": line["R-1"] / 2} if "method=bin " in line["run"] else line for line in lines]
    assert page(changed, WORDS) != page(lines, WORDS)
    readme = (ROOT / "README.md").read_text()
    assert with_blocks(readme, changed) != readme
    assert "ahead of BIN" in verdict(changed, "MetaBIN", "BIN")
