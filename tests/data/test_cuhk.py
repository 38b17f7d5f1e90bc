"""CUHK03's new protocol in its two forms, which are to give the same labels; broken lists."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from miniatures import draw

from metabin_jax.data.records import Record
from metabin_jax.data.sets.catalogue import SETS, find, read_set

LIST = "cuhk03_new_protocol_config_detected.mat"
NAMES = ["1_001_1_01.png", "1_001_1_02.png", "1_001_2_06.png", "1_002_2_10.png", "2_001_1_01.png", "2_001_2_07.png"]
GOOD = {
    "filelist": NAMES,
    "labels": [1, 1, 1, 2, 844, 844],
    "train_idx": [1, 2, 3],
    "query_idx": [5],  # counts from 1: 2_001_1_01.png
    "gallery_idx": [6, 4],
}
SAME_IN_MARKET_FORM = (
    "bounding_box_train/0001_c1_1.png",
    "bounding_box_train/0001_c1_2.png",
    "bounding_box_train/0001_c2_6.png",
    "query/0844_c1_1.png",
    "bounding_box_test/0002_c2_10.png",
    "bounding_box_test/0844_c2_7.png",
)
LABELS = [
    (1, 1, "train"),
    (1, 1, "train"),
    (1, 2, "train"),
    (844, 1, "query"),
    (2, 2, "gallery"),
    (844, 2, "gallery"),
]


def new_protocol(root: Path, **changes) -> Path:
    """CUHK03's folder with the list as MATLAB writes it: columns, the names a cell array."""
    draw(root, *(f"images_detected/{name}" for name in NAMES))
    columns = {}
    for field, values in (GOOD | changes).items():
        if values is not None:
            columns[field] = np.array(values, object if field == "filelist" else float).reshape(-1, 1)
    scipy.io.savemat(root / LIST, columns)
    return root


def test_the_list_gives_the_labels(tmp_path):
    root = new_protocol(tmp_path / "cuhk03")
    ordered = [NAMES[i] for i in (0, 1, 2, 4, 3, 5)]
    expected = [
        Record(str(root / "images_detected" / name), pid, camid, "cuhk03np", split)
        for name, (pid, camid, split) in zip(ordered, LABELS, strict=True)
    ]
    for start in (tmp_path, root):
        assert read_set("cuhk03np", start) == expected
    assert all(Path(record.path).is_file() for record in expected)


@pytest.mark.parametrize("root", ["cuhk03-np/detected", "CUHK03-NP", "cuhk03/detected"])
def test_the_folders_give_the_same_labels(tmp_path, root):
    draw(tmp_path / root, *SAME_IN_MARKET_FORM)
    draw(tmp_path / Path(root).parts[0] / "labeled", *SAME_IN_MARKET_FORM)  # is not read
    for start in (tmp_path, tmp_path / root):
        assert find(start) == (SETS["cuhk03np"], tmp_path / root)
        assert [(r.pid, r.camid, r.split) for r in read_set("cuhk03np", start)] == LABELS


def test_a_folder_with_the_list_is_cuhk03_unless_the_protocol_is_asked_for(tmp_path):
    new_protocol(tmp_path / "cuhk03")
    assert find(tmp_path)[0].name == "cuhk03"
    assert find(tmp_path, "cuhk03np")[0].name == "cuhk03np"
    assert [(r.pid, r.camid) for r in read_set("cuhk03", tmp_path)][-1] == (20001, 4)
    (tmp_path / "cuhk03").rename(tmp_path / "cuhk03np")
    assert find(tmp_path)[0].name == "cuhk03np"


def test_images_without_the_list(tmp_path):
    (new_protocol(tmp_path / "cuhk03") / LIST).unlink()
    with pytest.raises(ValueError, match=rf"looked for: cuhk03np \(below [^;]*images_detected, {LIST}"):
        read_set("cuhk03np", tmp_path)


@pytest.mark.parametrize("name", ["cuhk03", "cuhk03np"])
@pytest.mark.parametrize("where", ["cuhk-03.mat", "cuhk03_release/cuhk-03.mat"])
def test_cuhk03_as_it_was_published_has_to_be_prepared(tmp_path, name, where):
    (tmp_path / "cuhk03/cuhk03_release").mkdir(parents=True)
    (tmp_path / "cuhk03" / where).touch()
    (tmp_path / "cuhk03" / LIST).touch()
    assert find(tmp_path) == (SETS["cuhk03"], tmp_path / "cuhk03")
    with pytest.raises(ValueError, match=rf"cuhk03 holds {name} as it was published: run metabin prepare, which ext"):
        read_set(name, tmp_path)


@pytest.mark.parametrize("root", ["CUHK-SYSU", "CUHK-SYSU/dataset"])
def test_cuhksysu_as_it_was_published_has_to_be_prepared(tmp_path, root):
    draw(tmp_path / root, "Image/SSM/s1.jpg")
    (tmp_path / root / "annotation").mkdir()
    (tmp_path / root / "annotation/Person.mat").touch()
    assert find(tmp_path) == (SETS["cuhksysu"], tmp_path / root)
    with pytest.raises(ValueError, match="holds cuhksysu as it was published: run metabin prepare"):
        read_set("cuhksysu", tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": None}, rf"{LIST} is damaged or another file than its name says \(no 'labels'\): get it again\.$"),
        ({"query_idx": None}, r"\(no 'query_idx'\)"),
        ({"labels": [1, 1]}, r"\(6 names and 2 labels\)"),
        ({"gallery_idx": [6, 7]}, r"\(index 7 among 6 images\)"),
        ({"train_idx": [0]}, r"\(index 0 among 6 images\)"),
        ({"labels": [1, 1, 2, 2, 844, 844]}, "the labels and the persons in the names do not correspond"),
        ({"labels": [1, 1, 1, 844, 844, 844]}, "the labels and the persons in the names do not correspond"),
        ({"filelist": [*NAMES[:5], "2_001_2_08.png"]}, r"2_001_2_08\.png is listed but does not exist \(1 such\)"),
        ({"filelist": [*NAMES[:5], "2_001_3_07.png"]}, r"2_001_3_07\.png: the file name does not start with <pair>"),
    ],
)
def test_wrong_lists(tmp_path, changes, sentence):
    new_protocol(tmp_path / "cuhk03", **changes)
    with pytest.raises(ValueError, match=sentence):
        read_set("cuhk03np", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", None])
def test_damaged_lists(tmp_path, content):
    path = new_protocol(tmp_path / "cuhk03") / LIST
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(ValueError, match=rf"{LIST} is damaged or another file than its name says \([^\n]*\): get it "):
        read_set("cuhk03np", tmp_path)
