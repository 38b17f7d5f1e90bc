"""Every piece of Python in the README and in docs/ runs as it stands."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def cells(notebook: Path) -> list[str]:
    """The code cells; what is meant for the notebook's shell (a line starting with % or !) is left out."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    return [re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE) for source in sources]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page):
    scope: dict = {}
    for block in python_blocks(page):
        exec(block, scope)


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("docs/*.ipynb")), ids=lambda page: page.name)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    scope: dict = {}
    for cell in cells(notebook):
        exec(cell, scope)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_each_extension_takes_at_most_twenty_lines():
    *pieces, together = python_blocks(ROOT / "docs" / "extending.md")
    assert len(pieces) == 4  # norm layer, loss, backbone, kind of data set
    assert max(len([line for line in piece.splitlines() if line.strip()]) for piece in pieces) <= 20
    assert all(step in together for step in ("train(", "evaluate(", "embed_images(", "export("))
