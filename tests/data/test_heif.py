"""Photographs of phones, whose format Pillow reads with an extra package."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from metabin_jax import cli
from metabin_jax.data.cache import fault, upright
from metabin_jax.retrieval import encoder
from metabin_jax.retrieval.listing import list_images

pillow_heif = pytest.importorskip("pillow_heif", reason="writes the image")
RAMP = np.linspace(20, 230, 64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8)


@pytest.fixture(params=[".heic", ".HEIF"])
def picture(tmp_path, request):
    path = tmp_path / f"1{request.param}"
    pillow_heif.from_pillow(Image.fromarray(RAMP)).save(path, quality=95)
    return path


def test_a_picture_of_a_phone_is_listed_and_read(picture):
    assert [image.path for image in list_images(picture.parent)] == [str(picture)]
    for file in (picture, str(picture), io.BytesIO(picture.read_bytes())):
        got = np.asarray(upright(file)).astype(int)
        assert got.shape == RAMP.shape and np.abs(got - RAMP).mean() < 3
        assert np.abs(got - RAMP[::-1]).mean() > 20


def test_without_the_package_the_image_is_named_with_what_installs_it(capsys, picture, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(Image, "OPEN", {name: value for name, value in Image.OPEN.items() if name != "HEIF"})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(ValueError, match=r"format HEIF needs pillow-heif: .* pip install .*\[heif\]'"):
        upright(picture)
    manifest = picture.with_name("pictures.csv")
    manifest.write_text(f"path,pid\n{picture.name},Ann\n")
    assert cli.main(["doctor", str(manifest)]) == 0
    assert f"1 of them broken: {picture} (an image of the format HEIF needs pillow-heif" in capsys.readouterr().out


def test_another_file_under_the_name_is_broken(tmp_path):
    (tmp_path / "1.heic").write_bytes(b"no image at all")
    with pytest.raises(OSError, match="cannot identify image file"):
        upright(tmp_path / "1.heic")


def test_embed_gives_the_reason(picture, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(Image, "OPEN", {name: value for name, value in Image.OPEN.items() if name != "HEIF"})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    ((_, [(row, error)]),) = encoder.read_batches([str(picture)], (8, 8), 1)
    assert fault(str(picture), error).startswith(f"{picture} (an image of the format HEIF needs pillow-heif")
    assert row == 0
    monkeypatch.undo()
    ((_, broken),) = encoder.read_batches([str(picture)], (8, 8), 1)
    assert broken == []
