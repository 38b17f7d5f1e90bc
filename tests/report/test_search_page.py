"""The page of a search: what it shows, and that no name can break out of it."""

import re

import numpy as np
import pytest
from PIL import Image
from some_features import some_features

from metabin_jax import cli
from metabin_jax.report import html, search_page
from metabin_jax.retrieval import features

pytest.importorskip("jinja2", reason="pages need jinja2")


@pytest.fixture
def page(tmp_path, capsys):
    """Writes the page of a search for two queries of which one cannot be read, and returns its text."""
    names = ["a.jpg", "<img src=x onerror=alert(1)>.jpg", "16.png", "gone.jpg"]
    paths = np.array([str(tmp_path / name) for name in names])
    for number, name in enumerate(names[:2]):
        Image.new("RGB", (40, 600), (80 * number, 0, 200)).save(tmp_path / name)
    Image.fromarray(np.full((5, 5), 40000, np.uint16)).save(tmp_path / names[2])
    gallery = some_features(4, path=paths)
    features.write(tmp_path / "gallery.npz", gallery)
    features.write(tmp_path / "query.npz", some_features(2, path=np.array(["/no/query.jpg", str(tmp_path / "a.jpg")])))

    def write(*more):
        output = tmp_path / "found.html"
        arguments = [f"--query={tmp_path}/query.npz", f"--gallery={tmp_path}/gallery.npz", f"--output={output}"]
        assert cli.main(["search", *arguments, "--overwrite", *more]) == 0
        capsys.readouterr()
        return output.read_text(encoding="utf-8")

    return write


def test_pictures_labels_and_decisions(page, tmp_path):
    text = page("--threshold=0.1", "-k", "4")
    assert "2 queries" in text and "threshold 0.1000, given by hand" in text
    assert len(re.findall("<li class=", text)) == 5 + 4
    assert text.count("cannot be read") >= 2 and text.count("data:image/jpeg;base64,") >= 5
    assert "✓ same" in text and "✗ different" in text and "id Zoë" in text
    assert "rank 1" in page("-k", "3")  # without a threshold there is no decision


def test_names_stay_text(page):
    text = page()
    assert "<img src=x" not in text and "&lt;img src=x onerror=alert(1)&gt;.jpg" in text


def test_a_long_list_is_cut_and_says_so(page, monkeypatch):
    monkeypatch.setattr(search_page, "MOST", 1)
    text = page("-k", "1")
    assert "2 queries" in text and "shows the first 1; a .csv output has all" in text
    assert len(re.findall("<li class=", text)) == 2


def test_pictures_are_small_copies(page, tmp_path):
    """Of one with 600 rows."""
    page()
    assert len(html.picture(str, tmp_path / "a.jpg")) < 4000
