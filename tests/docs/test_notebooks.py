"""Every notebook in docs/ runs. A file of its own, so that it runs beside the pages."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def cells(notebook: Path) -> list[str]:
    """The code cells; what is meant for the notebook's shell (a line starting with % or !) is left out."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    return [re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE) for source in sources]


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("docs/*.ipynb")), ids=lambda page: page.name)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    scope: dict = {}
    for cell in cells(notebook):
        exec(cell, scope)
