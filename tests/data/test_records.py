from pathlib import Path

import pytest

from metabin_jax import cli
from metabin_jax.data.manifest import read_csv
from metabin_jax.data.records import Record, read_folder
from metabin_jax.runtime.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_flat_domains_are_sorted_and_of_split_all(tmp_path):
    touch(tmp_path, "b/0002_c1_1.jpg", "a/0003_c2_1.jpg", "a/0001_c1_2.jpg", "a/0001_c1_1.jpg")
    assert read_folder(tmp_path) == [
        Record(str(tmp_path / "a/0001_c1_1.jpg"), 1, 1, "a", "all"),
        Record(str(tmp_path / "a/0001_c1_2.jpg"), 1, 1, "a", "all"),
        Record(str(tmp_path / "a/0003_c2_1.jpg"), 3, 2, "a", "all"),
        Record(str(tmp_path / "b/0002_c1_1.jpg"), 2, 1, "b", "all"),
    ]


def test_market_folders_give_the_splits(tmp_path):
    touch(tmp_path, "m/bounding_box_train/0002_c1s1_1.jpg", "m/query/0001_c2s1_1.jpg", "m/gt_bbox/x.jpg")
    touch(tmp_path, "m/bounding_box_test/0000_c3s1_1.jpg", "m/readme.txt", "m/query/Thumbs.db")
    records = read_folder(tmp_path)
    assert [(r.pid, r.camid, r.split) for r in records] == [
        (2, 1, "train"),
        (1, 2, "query"),
        (0, 3, "gallery"),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001_c12_1.jpg", (1, 12)),
        ("99999_c1s1_000451_03.jpg", (99999, 1)),
        ("0001_c3.JPG", (1, 3)),
        ("0001_c3.jpeg", (1, 3)),
        ("0001_c3.Png", (1, 3)),
        ("0001_c3.bmp", (1, 3)),
        ("0001_c3.webp", (1, 3)),
        ("0001_c3_Straße_猫.jpg", (1, 3)),
        ("0000_c3_1.jpg", (0, 3)),
        ("0001_c1_0002_c2.jpg", (1, 1)),  # two of each: the first counts
    ],
)
def test_names(tmp_path, name, expected):
    touch(tmp_path, f"a/{name}")
    assert [(r.pid, r.camid) for r in read_folder(tmp_path)] == [expected]


def test_junk_hidden_files_and_other_files_are_left_out(tmp_path):
    touch(tmp_path, "a/-1_c1_1.jpg", "a/.0001_c1_1.jpg", "a/._0001_c1_1.jpg", "a/notes.txt", "a/0002_c1_1.jpg")
    touch(tmp_path, ".git/0001_c1_1.jpg", "LICENSE")
    assert [r.pid for r in read_folder(tmp_path)] == [2]


def test_domains_choose_and_order(tmp_path):
    touch(tmp_path, "a/1_c1.jpg", "ü/1_c1.jpg", "c/1_c1.jpg")
    assert [r.domain for r in read_folder(tmp_path, ("ü", "a"))] == ["ü", "a"]


@pytest.mark.parametrize(
    ("files", "domains", "error", "sentence"),
    [
        (["a/1_c1.jpg"], ["b"], FileNotFoundError, r"Domain 'b' is not in .*, which holds: a\."),
        (["a/1_c1.jpg"], ["a", "a"], ValueError, "names one twice"),
        (["a/1_c1.jpg", "b/notes.txt"], [], ValueError, r"folder \S*b holds no image"),
        (["a/-1_c1.jpg"], [], ValueError, r"folder \S*a holds no image"),
        (["1_c1.jpg"], [], ValueError, "point to its parent folder"),
        (["bounding_box_train/1_c1.jpg"], [], ValueError, "point to its parent folder"),
        (["notes.txt"], [], ValueError, "holds no domain"),
        (["a/0001_0002_c1.jpg"], [], ValueError, r"a/0001_0002_c1\.jpg: the file name does not start with <pid>_c<cam"),
        (["a/picture.jpg"], [], ValueError, r"a/picture\.jpg: .*<pid>_c<camera>.*CSV manifest"),
        (["a/-2_c1.jpg"], [], ValueError, r"a/-2_c1\.jpg: .*<pid>_c<camera>"),
        (["a/x_1_c1.jpg"], [], ValueError, r"a/x_1_c1\.jpg: .*<pid>_c<camera>"),
    ],
)
def test_folder_errors(tmp_path, files, domains, error, sentence):
    touch(tmp_path, *files)
    with pytest.raises(error, match=sentence):
        read_folder(tmp_path, domains)


def test_another_layout_leads_to_index(tmp_path):
    """Its advice is taken: the manifest has the images."""
    for name in ("Ann", "Bo"):
        (tmp_path / "p" / "shop" / name).mkdir(parents=True)
        (tmp_path / "p" / "shop" / name / "1.jpg").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"shop has another layout than .*, as in Ann/1\.jpg: let metabin index \S*p make"
    ):
        read_folder(tmp_path / "p")
    assert cli.main(["index", str(tmp_path / "p"), f"--output={tmp_path}/p.csv"]) == 0
    assert len(read_csv(tmp_path / "p.csv")) == 2


def test_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [f"{'9' * 20}_c1_1.jpg", f"0001_c{'1' * 20}_1.jpg", f"{'9' * 200}_c1.jpg"])
def test_numbers_that_int64_cannot_hold_are_refused(tmp_path, name):
    touch(tmp_path, f"a/{name}")
    with pytest.raises(ValueError, match=r"a/\d+_c\d+\S*\.jpg: \d+ has more than 18 digits"):
        read_folder(tmp_path)
