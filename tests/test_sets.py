"""Miniatures of the real layouts: real folder and file names, flat colours in place of pictures."""

from pathlib import Path

import pytest
from miniatures import MARKET, draw

from metabin_jax.data import cache, dataset
from metabin_jax.data.records import Record
from metabin_jax.data.sets import SETS, find, read_set


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


MARKET_LABELS = [(2, 1, "train"), (2, 2, "train"), (1, 1, "query"), (0, 1, "gallery"), (1, 3, "gallery")]
DUKE = (
    "bounding_box_train/0001_c2_f0046182.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0005_c5_f0051341.jpg",
    "bounding_box_test/7139_c8_f0140000.jpg",
)
CUHK02 = tuple(f"P{pair}/cam{camera}/001_{camera}.png" for pair in range(1, 6) for camera in (1, 2))
PRID = ("cam_a/person_0001.png", "cam_a/person_0201.png", "cam_b/person_0001.png", "cam_b/person_0201.png")
PRID_LABELS = [(1, 1, "all"), (10201, 1, "all"), (1, 2, "all"), (201, 2, "all")]
GRID = (
    "probe/0001_1_25023_116_134_128_330.jpeg",
    "gallery/0000_8_25008_169_19_94_220.jpeg",
    "gallery/0001_2_25004_107_32_106_221.jpeg",
)
GRID_LABELS = [(1, 1, "query"), (0, 8, "gallery"), (1, 2, "gallery")]
VIPER = ("cam_a/000_45.bmp", "cam_a/873_0.bmp", "cam_b/000_90.bmp")
VIPER_LABELS = [(0, 1, "all"), (873, 1, "all"), (0, 2, "all")]
ILIDS = ("0001001.jpg", "0001002.jpg", "0119004.jpg")
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
    ("file", "expected"),
    [
        ("query/0001_c12s1_000451_03.jpg", (1, 12)),
        ("query/99999_c3s1_000451_03.jpg", (99999, 3)),
        ("query/0001_c3s1_000451_03.JPG", (1, 3)),
        ("query/0001_c3s1_Straße_猫.jpg", (1, 3)),
        ("query/0001_c3s1_0002_c4s1.jpg", (1, 3)),  # two of each: the first counts
    ],
)
def test_market_names(tmp_path, file, expected):
    draw(tmp_path / "Übung 猫/market1501", file)
    for folder in ("bounding_box_train", "bounding_box_test"):
        (tmp_path / "Übung 猫/market1501" / folder).mkdir()
    (record,) = read_set("market1501", tmp_path / "Übung 猫")
    assert (record.pid, record.camid) == expected
    assert cache.load_images([record], (4, 2), tmp_path / "cache").shape == (1, 4, 2, 3)


def test_upper_case_extensions(tmp_path):
    draw(tmp_path / "viper", "cam_a/001_0.BMP", "cam_b/001_90.Bmp")
    assert [r.pid for r in read_set("viper", tmp_path)] == [1, 1]


def test_hidden_and_other_files_are_ignored(tmp_path):
    root = draw(tmp_path / "viper", *VIPER, "cam_a/.x.bmp", "cam_b/._000_90.bmp", ".git/000_0.bmp", "cover.jpg")
    write(root / "cam_a/Thumbs.db")
    write(root / "cam_b/.DS_Store")
    write(root / "readme.txt")
    assert len(read_set("viper", tmp_path)) == 3


@pytest.mark.parametrize(
    ("name", "files", "wrong", "sentence"),
    [
        ("market1501", MARKET, ["query/a.jpg", "bounding_box_train/b.jpg"], r"train/b\.jpg: .*\(2 such names in all\)"),
        ("market1501", MARKET, ["query/0001_0002_c1s1.jpg"], r"0001_0002_c1s1\.jpg: the file name does not start"),
        ("market1501", MARKET, ["query/-2_c1.jpg"], r"<pid>_c<camera> .*CSV manifest"),
        ("cuhk02", CUHK02, ["P3/cam2/first_1.png"], r"P3/cam2/first_1\.png: .* 001_1\.png"),
        ("cuhk02", CUHK02, ["P3/cam2/12345_1.png"], r"12345_1\.png: "),
        ("cuhk03", ["images_detected/1_001_1_01.png"], ["images_detected/1_001_3_01.png"], "1_001_3_01"),
        ("cuhk03", ["images_detected/1_001_1_01.png"], ["images_detected/6_001_1_01.png"], "6_001_1_01"),
        ("cuhksysu", [], ["cropped_image/p00001_p00002_s00001_hard0.png"], "p00001_p00002"),
        ("viper", VIPER, ["cam_b/000_001_90.bmp", "cam_b/x.bmp"], r"000_001_90\.bmp: .*\(2 such names in all\)"),
        ("prid2011", [f"single_shot/{n}" for n in PRID], ["single_shot/cam_b/person_1.png"], r"person_1\.png"),
        ("prid2011", [f"multi_shot/{n}" for n in PRID], ["multi_shot/cam_b/new/0001.png"], r"new/0001\.png"),
        ("grid", GRID, ["gallery/0001.jpeg"], r"0001\.jpeg: .*<pid>_<camera>"),
        ("ilids", [f"images/{n}" for n in ILIDS], ["images/00010010.jpg"], r"00010010\.jpg: .*seven digits"),
    ],
)
def test_names_that_do_not_fit(tmp_path, name, files, wrong, sentence):
    root = draw(tmp_path / name, *files)
    if files:
        assert read_set(name, tmp_path)  # fine so far
    draw(root, *wrong)
    with pytest.raises(ValueError, match=sentence):
        read_set(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0000_000_01_0303morning_0008_0.jpg 0\nsome words\n0000.jpg 0\n", r"0000\.jpg 0: .*\(2 such names in all\)"),
        ("0000_c1.jpg 0\n", "list_train.txt/0000_c1.jpg 0: the file name does not start with <path>"),
        ("0009/0009_000_01_0303morning_0008_0.jpg 9\n", r"0009_0\S* is listed but does not exist \(1 such\)"),
    ],
)
def test_wrong_msmt17_lists(tmp_path, text, sentence):
    root = msmt17(tmp_path / "MSMT17_V1", "train", "test")
    write(root / "list_train.txt", text)
    with pytest.raises(ValueError, match=sentence):
        read_set("msmt17", tmp_path)


def test_cuhk03_as_it_comes_names_what_to_extract(tmp_path):
    write(tmp_path / "cuhk03/cuhk03_release/cuhk-03.mat")
    assert find(tmp_path)[0].name == "cuhk03"
    with pytest.raises(ValueError, match=r"extract .*'detected' to .*images_detected/<pair>_<pid>_<view>_<n>\.png"):
        read_set("cuhk03", tmp_path)
    draw(tmp_path / "cuhk03/images_detected", "1_001_1_01.png")
    assert [r.pid for r in read_set("cuhk03", tmp_path)] == [10001]


@pytest.mark.parametrize("gone", ["query", "bounding_box_train", "bounding_box_test"])
def test_missing_folder(tmp_path, gone):
    root = draw(tmp_path / "market1501", *MARKET)
    (root / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"looked for: market1501 \(.*: bounding_box_train, query, bounding_box_test"):
        read_set("market1501", tmp_path)
    with pytest.raises(ValueError, match=r"looked for: cuhk02 .*; viper \(.*; ilids \("):
        find(tmp_path)


def test_other_errors(tmp_path):
    with pytest.raises(ValueError, match="no data set 'Market'; known are cuhk02, "):
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
