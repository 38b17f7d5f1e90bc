"""`metabin prepare`: what it keeps, compared with the files themselves."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from miniatures import MARKET, draw
from PIL import Image
from tiny_run import assert_same_run, tiny_config

from metabin_jax.data import cache, dataset
from metabin_jax.data.records import read_folder
from metabin_jax.data.sets import extraction, prepare, prepared
from metabin_jax.data.sets.catalogue import SETS, read_set
from metabin_jax.data.sets.reid import reid_dataset_builder
from metabin_jax.training.train import train

VIPER = ("cam_a/000_45.bmp", "cam_a/873_0.bmp", "cam_b/000_90.bmp")
PRID = ("cam_a/person_0001.png", "cam_a/person_0201.png", "cam_b/person_0001.png", "cam_b/person_0201.png")
LAYOUTS = [
    ("market1501", "Market-1501-v15.09.15", MARKET),
    ("viper", "viper/VIPeR", VIPER),
    ("prid2011", "prid_2011", tuple(f"single_shot/{name}" for name in PRID)),
    ("ilids", "Übung 猫/QMUL-iLIDS", ("images/0001001.jpg", "images/0001002.jpg", "images/0119004.jpg")),
]


def version(domain: str, data_dir: Path) -> Path:
    return data_dir / "reid" / domain / "1.0.0"


def small_folder(root: Path, domain: str = "yard", number: int = 8) -> Path:
    return draw(root / domain, *(f"{pid:04d}_c{pid % 2}_x.png" for pid in range(number))).parent


def pixels(source: str, path: Path, cache_dir: Path, domains=()) -> np.ndarray:
    records = dataset.read(source, str(path), domains)
    return np.array(dataset.load_images(source, records, (6, 5), str(cache_dir)))


@pytest.mark.parametrize(("name", "root", "files"), LAYOUTS)
def test_records_are_those_of_the_reader(raw, data_dir, name, root, files, monkeypatch):
    """In its order, over several shards; and what tfds finds is what is on disk."""
    monkeypatch.setattr(reid_dataset_builder, "IMAGES_PER_SHARD", 2)
    monkeypatch.setattr(reid_dataset_builder, "IMAGES_AT_ONCE", 1)
    draw(raw / root, *files)
    manual_dir = (raw / root).parent
    expected = read_set(name, manual_dir)
    prepare.prepare(name, manual_dir, data_dir, allow_incomplete=True)

    records = prepared.read(data_dir)
    assert [record[1:] for record in records] == [record[1:] for record in expected]
    below = [os.path.relpath(record.path, raw / root) for record in expected]
    assert [os.path.relpath(record.path, version(name, data_dir)) for record in records] == below
    images = dataset.load_images("prepared", records, (4, 2), str(data_dir / "cache"))
    np.testing.assert_array_equal(images, [np.asarray(Image.open(record.path)) for record in expected])

    builder = tfds.builder_from_directory(version(name, data_dir))
    sources = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
    found = [
        (ex["path"].decode(), ex["pid"], ex["camid"], ex["domain"].decode(), ex["split"].decode(), ex["image"])
        for split in ("train", "query", "gallery", "all_images")
        for ex in sources.get(split, ())
    ]
    on_disk = [(path, *r[1:5], Path(r.path).read_bytes()) for path, r in zip(below, expected, strict=True)]
    assert found == on_disk  # these readers give train, query and gallery in this order
    assert found != on_disk[::-1]


def test_splits_that_are_mixed_in_the_reader_s_order(raw, data_dir, monkeypatch):
    draw(raw / "viper", *VIPER)
    read = SETS["viper"].read

    def mixed(root, domain):
        splits = ("query", "gallery", "query")
        return [record._replace(split=split) for record, split in zip(read(root, domain), splits, strict=True)]

    monkeypatch.setitem(SETS, "viper", dataclasses.replace(SETS["viper"], read=mixed))
    prepare.prepare("viper", raw, data_dir, allow_incomplete=True)
    records = prepared.read(data_dir)
    assert [record.split for record in records] == ["query", "gallery", "query"]
    images = dataset.load_images("prepared", records, (4, 2), str(data_dir / "cache"))
    assert images[:, 0, 0, 0].tolist() == [0, 40, 80]


def test_every_kind_of_image_keeps_its_bytes_and_pixels(raw, data_dir, tmp_path):
    """As in a folder, byte for byte: modes, orientation, formats, and file names of any alphabet or none."""
    folder = raw / "Straße-猫"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (24, 10, 4), np.uint8)
    image = Image.fromarray(noise)
    for pid, mode in enumerate(("RGB", "L", "RGBA", "P", "1", "LA")):
        image.convert("RGB").convert(mode).save(folder / f"{pid}_c1_é猫.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("RGB").save(folder / "6_c1.jpg", exif=exif)
    image.convert("CMYK").save(folder / "7_c1.JPEG")
    image.convert("RGB").save(folder / "8_c1.webp")
    image.convert("RGB").save(os.fsencode(folder) + b"/9_c1_\xff.bmp")
    prepare.prepare("folder", raw, data_dir)
    assert len(prepared.read(data_dir, ["Straße-猫"])) == 10
    expected = pixels("folder", raw, tmp_path / "cache")
    assert len(np.unique(expected.reshape(10, -1), axis=0)) > 5
    np.testing.assert_array_equal(pixels("prepared", data_dir, tmp_path / "cache"), expected)

    image_file = dataset.SOURCES["prepared"].files(prepared.read(data_dir))
    for record, file in zip(prepared.read(data_dir), read_folder(raw), strict=True):
        assert image_file(record).read() == Path(file.path).read_bytes()


def test_prepared_once(raw, data_dir, capsys, complete):
    """One line on stdout, none on stderr; then it needs the raw set no more."""
    draw(raw / "viper", *VIPER)
    prepare.prepare("viper", raw, data_dir)
    out, err = capsys.readouterr()
    assert (out, err) == (f"viper: 3 images are prepared in {version('viper', data_dir)}\n", "")
    raw.rename(raw.with_name("elsewhere"))
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    prepare.prepare("viper", raw, data_dir)
    assert capsys.readouterr().out == f"viper is already prepared in {version('viper', data_dir)}\n"
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_the_cache_follows_the_prepared_images(raw, data_dir, tmp_path, monkeypatch):
    """Another image under the same name is another cache; the same data elsewhere is the same."""
    draw(raw / "yard", *(f"{pid:04d}_c1.bmp" for pid in range(8)))  # of one size in bytes, whatever their pixels
    prepare.prepare("folder", raw, data_dir)
    first = pixels("prepared", data_dir, tmp_path / "cache")
    moved = data_dir.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "decode_image", lambda *_: pytest.fail("decoded twice"))
        np.testing.assert_array_equal(pixels("prepared", moved, tmp_path / "cache"), first)
    Image.new("RGB", (2, 4), (1, 2, 3)).save(raw / "yard/0003_c1.bmp")
    prepare.prepare("folder", raw, data_dir)
    second = pixels("prepared", data_dir, tmp_path / "cache")
    assert (second != first).any(axis=(1, 2, 3)).tolist() == [row == 3 for row in range(8)]


def test_all_that_are_there(raw, data_dir, capsys):
    draw(raw / "viper/VIPeR", *VIPER)
    draw(raw / "market1501", *MARKET)
    prepare.prepare("all", raw, data_dir, allow_incomplete=True)
    out = capsys.readouterr().out
    missing = "cuhk01, cuhk02, cuhk03, dukemtmcreid, cuhk03np, cuhksysu, msmt17, prid2011, grid, ilids"
    assert f"not in {raw}: {missing}\n" in out
    assert [record.domain for record in prepared.read(data_dir)] == ["market1501"] * 5 + ["viper"] * 3
    assert [r.domain for r in prepared.read(data_dir, ["viper", "market1501"])] == ["viper"] * 3 + ["market1501"] * 5


def test_split_files_are_copied(raw, data_dir):
    """From the set's folder or, if no other set is in it, the one above."""
    draw(raw / "cuhk01", "campus/0001001.png")
    (raw / "cuhk01/splits.json").write_text("cuhk01")  # a source of ours, whatever others draw of it
    for name, root, file in (
        ("viper", "viper/VIPeR", "viper/splits.json"),
        ("prid2011", "prid_2011", "prid_2011/splits_single_shot.json"),
        ("grid", "GRID", "GRID/features_and_partitions.mat"),
        ("ilids", "ilids", "splits_of_nobody.json"),
    ):
        files = {"grid": ("probe/0001_1_2.jpeg", "gallery/0001_2_2.jpeg"), "ilids": ("images/0001001.jpg",)}
        draw(raw / root, *({n: f for n, _, f in LAYOUTS} | files)[name])
        (raw / file).write_text(name)
    prepare.prepare("all", raw, data_dir, allow_incomplete=True)
    copied = {path.name: path.read_text() for path in (data_dir / "splits").iterdir()}
    assert copied == {"viper.json": "viper", "prid2011.json": "prid2011", "grid.mat": "grid"}


def test_a_raw_form_is_extracted_first(raw, data_dir, monkeypatch):
    asked = []

    def ready(name, root, into):
        asked.append((name, root, into))
        return draw(into / name, "images_detected/1_001_1_01.png")

    monkeypatch.setattr(extraction, "ready", ready)
    (raw / "cuhk03_release").mkdir(parents=True)
    (raw / "cuhk03_release/cuhk-03.mat").touch()
    prepare.prepare("cuhk03", raw, data_dir, allow_incomplete=True)
    assert asked == [("cuhk03", raw, data_dir / "extracted")]
    (record,) = prepared.read(data_dir)
    path = str(version("cuhk03", data_dir) / "images_detected/1_001_1_01.png")
    assert record[:5] == (path, 10001, 1, "cuhk03", "all")


def test_the_builder_serves_tfds(raw, data_dir, complete):
    """By its registered name, with a config per known set, and pixels where somebody wants tfds to decode."""
    assert list(reid_dataset_builder.Builder.builder_configs) == list(SETS)
    draw(raw / "viper", *VIPER)
    builder = tfds.builder("reid/viper", data_dir=data_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
    source = tfds.data_source("reid/viper", split="all_images", data_dir=data_dir, download=False)
    assert len(source) == 3
    np.testing.assert_array_equal(source[1]["image"], np.asarray(Image.open(raw / "viper" / VIPER[1])))
    assert [record.pid for record in prepared.read(data_dir)] == [0, 873, 0]


IMPORTS = """
import sys
from metabin_jax import cli
from metabin_jax.data import dataset
cli.main(["--help"])
dataset.read("folder", "{raw}")
assert "tensorflow_datasets" not in sys.modules
assert cli.main(["prepare", "folder", "--manual_dir={raw}", "--data_dir={data_dir}"]) == 0
dataset.load_images("prepared", dataset.read("prepared", "{data_dir}"), (4, 2), "{data_dir}/cache")
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_is_never_imported_and_tfds_late(raw, data_dir):
    small_folder(raw)
    command = [sys.executable, "-W", "error", "-c", IMPORTS.format(raw=raw, data_dir=data_dir)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_training_is_the_same_to_the_bit(folder, straight, data_dir, tmp_path):
    """As from the folder; that another seed differs, test_resume shows."""
    prepare.prepare("folder", folder, data_dir)
    config = tiny_config(folder)
    config.data.source, config.data.path = "prepared", str(data_dir)
    result = train(config, tmp_path / "run")
    assert result["targets"] == straight[1]["targets"]
    assert_same_run(config, tmp_path / "run", straight[0])


def test_nothing_is_left_among_the_temporary_files(raw, data_dir, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    prepare.prepare("folder", small_folder(raw), data_dir)
    pixels("prepared", data_dir, tmp_path / "cache")
    assert list((tmp_path / "temporary").iterdir()) == []
