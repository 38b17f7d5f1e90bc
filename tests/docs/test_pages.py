"""Every piece of Python in the README and in docs/ runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

import metabin_jax
from metabin_jax import cli, norm
from metabin_jax.data.dataset import SOURCES
from metabin_jax.models.reid import BACKBONES
from metabin_jax.training.methods import LOSSES, METHODS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.fixture
def deployed(folder, tmp_path):
    """An exported net and pictures; the code of the page must give the features that we compute."""
    pytest.importorskip("onnxruntime", reason="the export needs onnx")
    pytest.importorskip("onnx", reason="the export needs onnx")
    torch = pytest.importorskip("torch", reason="the weights are PyTorch's")
    nets = pytest.importorskip("torch_reid_nets")
    torch.save(nets.OSNet(0.25).state_dict(), tmp_path / "osnet.pth")
    person, direction = np.arange(60) // 2, np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    scope = {
        "file": str(tmp_path / "osnet.onnx"),
        "paths": sorted(folder.rglob("*.png")),
        "path": person.astype(str),
        "pid": person.astype(str),
        "domain": np.array(["yard"] * 60),
        "camid": np.arange(60) % 2,
        "feature": direction / np.linalg.norm(direction, axis=1, keepdims=True),
    }
    size = ["--size=64x32"]
    assert cli.main(["export", f"--model={tmp_path}/osnet.pth", "--to=onnx", f"--output={scope['file']}", *size]) == 0
    yield scope
    expected = metabin_jax.Encoder.load(tmp_path / "osnet.pth", (64, 32))(scope["paths"][:2])
    assert abs(scope["similarity"] - expected[0] @ expected[1]) < 1e-5
    facts = scope["session"].get_modelmeta().custom_metadata_map
    assert facts["input"] == "image: uint8 RGB [N, 64, 32, 3]" and facts["run"] == "osnet.pth"


@pytest.fixture(autouse=True)
def tables():
    """What a page adds to them is gone afterwards."""
    known = norm.LAYERS, METHODS, LOSSES, BACKBONES, SOURCES
    before = [dict(table) for table in known]
    yield
    for table, entries in zip(known, before, strict=True):
        table.clear()
        table.update(entries)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, request):
    scope: dict = {}
    if page.name == "python.md":
        workdir, _ = request.getfixturevalue("straight")
        scope = {"workdir": workdir, "paths": sorted(request.getfixturevalue("folder").rglob("*.png"))}
    if page.name == "deploy.md":
        scope = request.getfixturevalue("deployed")
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
