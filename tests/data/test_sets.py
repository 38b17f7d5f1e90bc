"""Miniatures of the real layouts: real folder and file names, flat colours in place of pictures."""

from pathlib import Path

import pytest
from miniatures import CUHK02, DUKE, GRID, ILIDS, MARKET, PRID, VIPER, draw

from metabin_jax.data import dataset
from metabin_jax.data.records import Record
from metabin_jax.data.sets.catalogue import SETS, find, read_set


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


MARKET_LABELS = [(2, 1, "train"), (2, 2, "train"), (1, 1, "query"), (0, 1, "gallery"), (1, 3, "gallery")]
PRID_LABELS = [(1, 1, "all"), (10201, 1, "all"), (1, 2, "all"), (201, 2, "all")]
GRID_LABELS = [(1, 1, "query"), (0, 8, "gallery"), (1, 2, "gallery")]
VIPER_LABELS = [(0, 1, "all"), (873, 1, "all"), (0, 2, "all")]
ILIDS_LABELS = [(1, 1, "all"), (1, 2, "all"), (119, 4, "all")]
# The same numbers in train and test are different persons.
MSMT_LISTS = {
    "list_train.txt": "0000/0000_000_01_0303morning_0008_0.jpg 0\n",
    "list_val.txt": "0001/0001_003_15_0302noon_0100_1.jpg 1\n",
    "list_query.txt": "0000/0000_000_05_0303morning_0020_0.jpg 0\n",
    "list_gallery.txt": "0000/0000_002_12_0303afternoon_0033_2_ex.jpg 0\n",
}
MSMT_LABELS = [(0, 1, "train"), (1, 15, "train"), (10000, 5, "query"), (10000, 12, "gallery")]


def msmt17(root: Path, train: str, test: str) -> Path:
    draw(root / train, "0000/0000_000_01_0303morning_0008_0.jpg", "0001/0001_003_15_0302noon_0100_1.jpg")
    draw(root / test, "0000/0000_000_05_0303morning_0020_0.jpg", "0000/0000_002_12_0303afternoon_0033_2_ex.jpg")
    for name, text in MSMT_LISTS.items():
        write(root / name, text)
    return root


@pytest.mark.parametrize(
    ("name", "root", "files", "labels"),
    [
        ("market1501", "Market-1501-v15.09.15", MARKET, MARKET_LABELS),
        ("market1501", "market1501/Market-1501-v15.09.15", MARKET, MARKET_LABELS),
        (
            "dukemtmcreid",
            "DukeMTMC-reID",
            DUKE,
            [(1, 2, "train"), (5, 2, "query"), (5, 5, "gallery"), (7139, 8, "gallery")],
        ),
        (
            "cuhk01",
            "CUHK01",
            [f"campus/{n}.png" for n in ("0001001", "0001002", "0001003", "0001004", "0971003")],
            [(1, 1, "all"), (1, 1, "all"), (1, 2, "all"), (1, 2, "all"), (971, 2, "all")],
        ),
        ("cuhk02", "cuhk02/Dataset", CUHK02, [(10000 * ((n + 1) // 2) + 1, n, "all") for n in range(1, 11)]),
        (
            "cuhk03",
            "CUHK03",
            [f"images_detected/{n}" for n in ("1_001_1_01.png", "1_001_2_06.png", "5_049_2_10.png")],
            [(10001, 1, "all"), (10001, 2, "all"), (50049, 10, "all")],
        ),
        (
            "cuhksysu",
            "CUHK-SYSU",
            [f"cropped_image/p{n}.png" for n in ("00001_n01_s00001_hard0", "00001_n02_s00007_hard1")]
            + ["cropped_image/p11934_n01_s00001_hard0.png"],
            [(1, 1, "all"), (1, 2, "all"), (11934, 3, "all")],
        ),
        ("viper", "VIPeR", VIPER, VIPER_LABELS),
        ("viper", "viper/VIPeR", VIPER, VIPER_LABELS),
        ("prid2011", "prid_2011", [f"single_shot/{name}" for name in PRID], PRID_LABELS),
        ("prid2011", "prid2011/prid_2011", [f"multi_shot/{name}" for name in PRID], PRID_LABELS),
        (
            "prid2011",
            "prid_2011",
            [f"multi_shot/{name.replace('.png', '/0007.png')}" for name in PRID],
            PRID_LABELS,
        ),
        ("grid", "GRID", GRID, GRID_LABELS),
        ("grid", "grid/underground_reid", GRID, GRID_LABELS),
        ("ilids", "QMUL-iLIDS", [f"images/{name}" for name in ILIDS], ILIDS_LABELS),
        ("ilids", "ilids/i-LIDS_Pedestrian", [f"Persons/{name}" for name in ILIDS], ILIDS_LABELS),
    ],
)
def test_layouts(tmp_path, name, root, files, labels):
    """Recognised and read from its own folder, from its parents, and whatever the top folder is called."""
    draw(tmp_path / root, *files)
    kept = [file for file in files if "/-1_" not in file]
    expected = [Record(str(tmp_path / root / f), *lab[:2], name, lab[2]) for f, lab in zip(kept, labels, strict=True)]
    for start in (tmp_path, tmp_path / Path(root).parts[0], tmp_path / root):
        assert find(start) == (SETS[name], tmp_path / root)
        assert read_set(name, start) == expected


@pytest.mark.parametrize(
    ("root", "train", "test"), [("MSMT17_V1", "train", "test"), ("msmt17/MSMT17_V2", "mask_train_v2", "mask_test_v2")]
)
def test_msmt17(tmp_path, root, train, test):
    msmt17(tmp_path / root, train, test)
    records = read_set("msmt17", tmp_path)
    assert find(tmp_path) == (SETS["msmt17"], tmp_path / root)
    assert [(r.pid, r.camid, r.split) for r in records] == MSMT_LABELS
    assert records[0].path == str(tmp_path / root / train / "0000/0000_000_01_0303morning_0008_0.jpg")
    assert all(Path(r.path).is_file() for r in records)


def test_prid_prefers_the_single_shot_version(tmp_path):
    draw(tmp_path / "prid_2011/single_shot", *PRID)
    draw(tmp_path / "prid_2011/multi_shot", *(name.replace(".png", "/0007.png") for name in PRID))
    assert [Path(r.path).name for r in read_set("prid2011", tmp_path)] == [Path(name).name for name in PRID]


def test_two_views_alone_are_not_taken_for_viper(tmp_path):
    draw(tmp_path / "single_shot", *PRID)
    with pytest.raises(ValueError, match="does not hold"):
        find(tmp_path / "single_shot")


def test_one_of_several_sets_in_a_folder(tmp_path):
    draw(tmp_path / "market1501", *MARKET)
    draw(tmp_path / "dukemtmc-reid", *DUKE)
    draw(tmp_path / "holiday", "0001_c1.jpg")
    assert [r.pid for r in read_set("dukemtmcreid", tmp_path)] == [1, 5, 5, 7139]
    with pytest.raises(ValueError, match=r"may hold dukemtmcreid in .*, market1501 in .*: point to one folder"):
        find(tmp_path)


def test_a_shared_layout_needs_a_telling_name(tmp_path):
    draw(tmp_path / "boxes", *MARKET)
    with pytest.raises(ValueError, match=r"may hold market1501 in .*boxes, dukemtmcreid in .*boxes"):
        find(tmp_path / "boxes")
    assert len(read_set("market1501", tmp_path / "boxes")) == 5  # the caller says which it is
    (tmp_path / "boxes").rename(tmp_path / "market1501")
    with pytest.raises(ValueError, match=r"does not hold, .*: dukemtmcreid"):
        read_set("dukemtmcreid", tmp_path / "market1501")


def test_the_name_counts_from_within_the_folder_too(tmp_path, monkeypatch):
    monkeypatch.chdir(draw(tmp_path / "market1501", *MARKET))
    assert find(".")[0].name == "market1501"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0000_000_01_0303morning_0008_0.jpg 0\nsome words\n0000.jpg 0\n", r"0000\.jpg 0: .*\(2 such names in all\)"),
        ("0000/0000_0001_000_01_0303morning_0008_0.jpg 0\n", "0000_0001_000_01_0303morning.* does not start with"),
        ("0000_c1.jpg 0\n", "list_train.txt/0000_c1.jpg 0: the file name does not start with <path>"),
        ("0009/0009_000_01_0303morning_0008_0.jpg 9\n", r"0009_0\S* is listed but does not exist \(1 such\)"),
    ],
)
def test_wrong_msmt17_lists(tmp_path, text, sentence):
    root = msmt17(tmp_path / "MSMT17_V1", "train", "test")
    write(root / "list_train.txt", text)
    with pytest.raises(ValueError, match=sentence):
        read_set("msmt17", tmp_path)


def test_msmt17_list_in_another_encoding(tmp_path):
    root = msmt17(tmp_path / "MSMT17_V1", "train", "test")
    (root / "list_train.txt").write_bytes(b"0000/0000_000_01_0303\xff_0008_0.jpg 0\n")
    with pytest.raises(ValueError, match=r"is listed but does not exist \(1 such\)"):
        read_set("msmt17", tmp_path)


@pytest.mark.parametrize(
    ("name", "files", "gone"),
    [("market1501", MARKET, gone) for gone in ("query", "bounding_box_train", "bounding_box_test")]
    + [("cuhk01", ["campus/0001001.png"], "campus"), ("cuhk02", CUHK02, "P4/cam2"), ("viper", VIPER, "cam_b")]
    + [("prid2011", [f"single_shot/{n}" for n in PRID], "single_shot/cam_a"), ("grid", GRID, "probe")]
    + [("ilids", [f"images/{n}" for n in ILIDS], "images")],
)
def test_missing_folder(tmp_path, name, files, gone):
    root = draw(tmp_path / name, *files)
    assert read_set(name, tmp_path)  # fine so far
    (root / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"looked for: {name} \(below [^;]*{gone}[^;]*\)\.$"):
        read_set(name, tmp_path)
    with pytest.raises(ValueError, match=r"looked for: cuhk01, .*, viper, .*, ilids; one of them by name"):
        find(tmp_path)


def test_missing_msmt17_folder(tmp_path):
    root = msmt17(tmp_path / "MSMT17_V1", "train", "test")
    (root / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"looked for: msmt17 \(below .*: train, test, list_train\.txt"):
        read_set("msmt17", tmp_path)


def test_other_errors(tmp_path):
    with pytest.raises(ValueError, match="no data set 'Market'; known are cuhk01, cuhk02, "):
        read_set("Market", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find(tmp_path / "nowhere")
    (tmp_path / "cuhksysu/cropped_image").mkdir(parents=True)
    with pytest.raises(ValueError, match="has the folders of cuhksysu but no image"):
        read_set("cuhksysu", tmp_path)


def test_a_set_can_be_trained_on(tmp_path):
    draw(tmp_path / "market1501", *MARKET)
    draw(tmp_path / "viper", *VIPER)
    records = read_set("market1501", tmp_path) + read_set("viper", tmp_path)
    training = dataset.training_set(records, ("market1501", "viper"), 0.0, 0)
    assert training.pid.tolist() == [0, 0, 1, 2, 1]


@pytest.mark.parametrize("folder", ["{outside}/", "../../outside/", "link/", "0000/"])
def test_an_msmt17_list_names_files_of_the_set_only(tmp_path, folder):
    root = msmt17(tmp_path / "MSMT17_V1", "train", "test")
    outside = draw(tmp_path / "outside", "0000_000_01_x_0.jpg")
    (root / "train" / "link").symlink_to(outside)
    (root / "train" / "0000" / "0000_000_01_x_0.jpg").symlink_to(outside / "0000_000_01_x_0.jpg")
    write(root / "list_train.txt", f"{folder.format(outside=outside)}0000_000_01_x_0.jpg 0\n")
    with pytest.raises(ValueError, match=r"_000_01_\S* is listed, which leads out of .*/train: get the list again"):
        read_set("msmt17", tmp_path)


def test_an_msmt17_set_may_lie_behind_a_link(tmp_path):
    msmt17(tmp_path / "disk" / "x", "train", "test")
    (tmp_path / "MSMT17_V1").symlink_to(tmp_path / "disk" / "x")
    assert read_set("msmt17", tmp_path / "MSMT17_V1")
