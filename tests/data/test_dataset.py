import functools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import draw_folder

from metabin_jax.data import dataset, synthetic
from metabin_jax.data.records import Record
from metabin_jax.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return draw_folder(tmp_path / "data", ("a", "b", "c"), ids=2)


def shop(domain, *rows):
    return [Record(f"{domain}/{i}.png", pid, camid, domain, split) for i, (pid, camid, split) in enumerate(rows)]


def test_a_folder_is_read_in_the_order_asked_for(folder):
    assert [r.domain for r in dataset.read("folder", str(folder))] == ["a"] * 8 + ["b"] * 8 + ["c"] * 8
    assert [r.domain for r in dataset.read("folder", str(folder), ("c", "a"))] == ["c"] * 8 + ["a"] * 8


def test_synthetic_people_are_as_many_as_asked_for_and_drawn_once(tmp_path, monkeypatch):
    records = dataset.read("synthetic", "3", ("mall", "plaza"))
    assert {(r.domain, r.pid) for r in records} == {(domain, pid) for domain in ("mall", "plaza") for pid in range(3)}
    assert len(dataset.read("synthetic", "")) == 6 * 40 * 8
    images = dataset.load_images("synthetic", records, (16, 8), str(tmp_path))
    expected, listed = synthetic.generate(0, ("mall", "plaza"), 3, size=(16, 8))
    assert (images == expected).all() and records == listed
    monkeypatch.setattr(synthetic, "draw", None)  # the second time they come from the cache
    assert (dataset.load_images("synthetic", records, (16, 8), str(tmp_path)) == expected).all()
    with pytest.raises(ValueError, match="broken"):
        dataset.load_images("synthetic", records, (32, 8), str(tmp_path))


def test_images_at_their_own_size(folder):
    """Files as they are; synthetic people drawn larger than most nets take them, the same ones."""
    record = dataset.read("folder", str(folder))[0]
    assert dataset.SOURCES["folder"].files([record])(record) == record.path
    record = dataset.read("synthetic", "2", ("mall",))[0]
    large = Image.open(dataset.SOURCES["synthetic"].files([record])(record))
    assert large.size == (80, 160)
    small = synthetic.draw_record(record, (20, 10)).astype(float)
    other = synthetic.draw_record(record._replace(pid=1), (20, 10)).astype(float)
    shrunk = np.asarray(large.resize((10, 20), Image.Resampling.BOX), float)
    assert np.abs(shrunk - small).mean() < 0.5 * np.abs(shrunk - other).mean()


def test_a_broken_domain_does_not_matter_until_it_is_asked_for(folder):
    (folder / "d").mkdir()
    assert len(dataset.read("folder", str(folder), ("a", "b"))) == 16
    with pytest.raises(ValueError, match="leave this domain out"):
        dataset.read("folder", str(folder))


def test_a_manifest_is_read_in_the_order_asked_for(folder):
    rows = [
        f"{r.domain}/{r.path.rsplit('/', 1)[1]},{r.pid},{r.camid},{r.domain}" for r in dataset.read("folder", folder)
    ]
    manifest = folder / "all.csv"
    manifest.write_text("\n".join(["path,pid,camid,domain", *rows]))
    records = dataset.read("csv", str(manifest), ("b", "a"))
    shouting = manifest.rename(folder / "ALL.CSV")
    assert dataset.read("folder", str(shouting), ("b", "a")) == records
    shouting.rename(manifest)
    assert [r.domain for r in records] == ["b"] * 8 + ["a"] * 8
    with pytest.raises(ValueError, match="no domain 'z' in the data, which has a, b, c"):
        dataset.read("csv", str(manifest), ("a", "z"))


def test_the_synthetic_records_are_those_of_the_drawn_images(monkeypatch):
    few = {"ids_per_domain": 2, "images_per_id": 4}
    images, records = synthetic.generate(0, ("mall", "plaza"), size=(32, 16), **few)
    listed, draw = synthetic.list_records, synthetic.generate
    assert listed(("mall", "plaza"), **few) == records

    monkeypatch.setattr(synthetic, "list_records", functools.partial(listed, **few))
    monkeypatch.setattr(synthetic, "generate", functools.partial(draw, **few))
    read = dataset.read("synthetic", "", ("mall", "plaza"))
    assert read == records
    np.testing.assert_array_equal(dataset.load_images("synthetic", read, (32, 16), ""), images)
    # Negative control: another order is another array.
    swapped = dataset.read("synthetic", "", ("plaza", "mall"))
    assert (dataset.load_images("synthetic", swapped, (32, 16), "") != images).any()
    with pytest.raises(ValueError, match="no domain 'moon' in the data, which has plaza, campus"):
        dataset.read("synthetic", "", ("moon",))


def test_a_source_of_ones_own_is_registered(monkeypatch, tmp_path):
    """Its images come from its own function; without one, from the files that the records name."""
    records = [*shop("a", (1, 1, "all"), (2, 1, "all")), *shop("b", (1, 2, "all"))]

    def images(records, size, cache_dir):
        return np.stack([np.full((*size, 3), record.pid, np.uint8) for record in records])

    monkeypatch.setitem(dataset.SOURCES, "mine", dataset.Source(lambda path, domains: records, images))
    read = dataset.read("mine", "", ("b", "a"))
    assert read == [records[2], *records[:2]]
    assert dataset.load_images("mine", read, (2, 1), "")[:, 0, 0, 0].tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match="no domain 'z' in the data, which has a, b"):
        dataset.read("mine", "", ("z",))
    monkeypatch.setitem(dataset.SOURCES, "mine", dataset.Source(lambda path, domains: records))
    with pytest.raises(FileNotFoundError, match=r"Image \S*b/0\.png does not exist"):
        dataset.load_images("mine", read, (2, 1), str(tmp_path))


def test_images_come_with_their_records(folder, tmp_path):
    records = dataset.read("folder", str(folder), ("b", "a"))
    images = dataset.load_images("folder", records, (8, 4), str(tmp_path / "cache"))
    assert (images.shape, images.dtype) == ((16, 8, 4, 3), np.uint8)
    for image, record in zip(images, records, strict=True):
        again = dataset.load_images("folder", [record], (8, 4), str(tmp_path / "cache"))
        np.testing.assert_array_equal(image, again[0])


def test_identities_are_numbered_over_all_sources():
    records = [
        *shop("b", (7, 1, "train"), (3, 1, "all"), (7, 2, "query"), (7, 2, "gallery"), (0, 1, "gallery")),
        *shop("a", (3, 1, "train"), (7, 1, "train"), (3, 2, "train")),
    ]
    data = dataset.training_set(records, ("b", "a"), 0, seed=0)
    assert [(r.domain, r.pid) for r in data.records] == [("b", 7), ("b", 3), ("a", 3), ("a", 7), ("a", 3)]
    assert data.domain.tolist() == [0, 0, 1, 1, 1]
    assert data.pid.tolist() == [1, 0, 2, 3, 2]
    assert data.num_ids == 4
    assert data.held_out == {}


def test_the_held_out_identities_do_not_train():
    ids = [(pid, camid, "all") for pid in range(10) for camid in (1, 2)]
    data = dataset.training_set([*shop("a", *ids), *shop("b", *ids)], ("a", "b"), 0.3, seed=0)
    assert data.num_ids == 14
    assert sorted(set(data.pid.tolist())) == list(range(-1, 14))
    for domain, rows in data.held_out.items():
        assert {data.records[row].domain for row in rows} == {domain}
        away = {data.records[row].pid for row in rows}
        assert len(away) == 3
        kept = {r.pid for r, pid in zip(data.records, data.pid, strict=True) if r.domain == domain and pid >= 0}
        assert kept == set(range(10)) - away
    assert (data.pid == -1).sum() == sum(map(len, data.held_out.values())) == 12
    other = dataset.training_set([*shop("a", *ids), *shop("b", *ids)], ("a", "b"), 0.3, seed=1)
    assert other.pid.tolist() != data.pid.tolist()


def test_a_domain_without_training_images_is_named():
    records = [*shop("a", (1, 1, "train")), *shop("b", (1, 1, "query"), (1, 2, "gallery"))]
    with pytest.raises(ValueError, match="domain 'b' has no image of split train or all"):
        dataset.training_set(records, ("a", "b"), 0, seed=0)


def test_a_domain_that_is_held_out_whole_leaves_no_identity():
    two = [(pid, camid, "all") for pid in range(2) for camid in (1, 2)]
    data = dataset.training_set(shop("a", *two), ("a",), 0.1, seed=0)
    assert data.num_ids == 0


def test_the_splits_that_train_are_a_choice():
    records = shop("a", (1, 1, "train"), (2, 1, "query"), (2, 2, "gallery"), (3, 1, "all"))
    data = dataset.training_set(records, ("a",), 0, seed=0, splits=("train", "query", "gallery"))
    assert [record.split for record in data.records] == ["train", "query", "gallery"]
    distractor = Record("a/4.png", 0, 1, "a", "gallery")
    assert dataset.training_set([*records, distractor], ("a",), 0, 0, ("train", "gallery")).num_ids == 2
    assert data.num_ids == 2
    with pytest.raises(ValueError, match="domain 'a' has no image of split query or gallery: leave it out"):
        dataset.training_set(records[:1], ("a",), 0, seed=0, splits=("query", "gallery"))


def test_cameras_can_be_the_domains():
    """Of one source or of more; who is seen by two cameras remains one identity."""
    records = [
        *shop("b", (7, 12, "train"), (3, 2, "train"), (7, 2, "train")),
        *shop("a", (7, 2, "train"), (5, 2, "train")),
    ]
    data = dataset.training_set(records, ("b", "a"), 0, seed=0, domain_by="camera")
    assert data.domains == ("b, camera 2", "b, camera 12", "a, camera 2")
    assert data.domain.tolist() == [1, 0, 0, 2, 2]
    assert data.pid.tolist() == [1, 0, 1, 3, 2]


def test_identities_are_held_out_of_all_cameras():
    ids = [(pid, camid, "all") for pid in range(10) for camid in (1, 2, 3)]
    data = dataset.training_set(shop("a", *ids), ("a",), 0.3, seed=0, domain_by="camera")
    assert list(data.held_out) == ["a"]
    away = {data.records[row].pid for row in data.held_out["a"]}
    assert len(away) == 3
    assert all((pid == -1) == (r.pid in away) for r, pid in zip(data.records, data.pid, strict=True))


def test_a_domain_that_the_tables_cannot_name_is_refused_when_it_is_read(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/caf\xe9"))
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(os.fsencode(folder) + b"/0001_c1_1.png")
    with pytest.raises(
        UserError, match=r"domain 'caf\\udce9' is not a name in UTF-8, which the tables need: rename it"
    ):
        dataset.read("folder", str(tmp_path / "data"))
