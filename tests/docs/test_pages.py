"""Every piece of Python in the README and in docs/ runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, request):
    scope: dict = {}
    if page.name == "python.md":
        workdir, _ = request.getfixturevalue("straight")
        scope = {"workdir": workdir, "paths": sorted(request.getfixturevalue("folder").rglob("*.png"))}
    for block in python_blocks(page):
        exec(block, scope)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_each_extension_takes_at_most_twenty_lines():
    *pieces, together = python_blocks(ROOT / "docs" / "extending.md")
    assert len(pieces) == 4  # norm layer, loss, backbone, kind of data set
    assert max(len([line for line in piece.splitlines() if line.strip()]) for piece in pieces) <= 20
    assert all(step in together for step in ("train(", "evaluate(", "embed_images(", "export("))
