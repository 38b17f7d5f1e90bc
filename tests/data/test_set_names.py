"""File names and images that are unusual or wrong: read right, or refused in one sentence, but never mislabelled."""

import pytest
from miniatures import CUHK02, GRID, ILIDS, MARKET, PRID, VIPER, draw
from PIL import Image

from metabin_jax.data import cache
from metabin_jax.data.sets.catalogue import read_set


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


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("viper", ["cam_a/001_0.BMP", "cam_b/001_90.Bmp"]),
        ("cuhk01", ["campus/0001001.PNG"]),
        ("cuhk03", ["images_detected/1_001_1_01.PNG"]),
        ("prid2011", ["single_shot/cam_a/person_0001.PNG", "single_shot/cam_b/person_0001.png"]),
        ("grid", ["probe/0001_1_2.JPEG", "gallery/0001_2_2.JPG"]),
        ("ilids", ["images/0001001.JPG"]),
    ],
)
def test_upper_case_extensions(tmp_path, name, files):
    draw(tmp_path / name, *files)
    assert [r.pid % 10_000 for r in read_set(name, tmp_path)] == [1] * len(files)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_colour_modes(tmp_path, mode):
    """The label comes from the name alone, and the image is RGB in the end."""
    path = tmp_path / "Übung/viper/cam_a/001_0.png"
    draw(tmp_path / "Übung/viper", "cam_b/001_90.bmp")  # its red is 0
    path.parent.mkdir()
    Image.new("RGB", (2, 4), (255, 255, 255)).convert(mode).save(path)
    records = read_set("viper", tmp_path / "Übung")
    assert [(r.pid, r.camid) for r in records] == [(1, 1), (1, 2)]
    images = cache.load_images(records, (4, 2), tmp_path / "cache")
    assert images[0].min() == 255 and images[1].min() == 0


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("grid", ["probe/99999_12_2.jpeg", "gallery/99999_11_2.jpeg"], [(99999, 12), (99999, 11)]),
        ("viper", ["cam_a/99999_45.bmp", "cam_b/99999_90.bmp"], [(99999, 1), (99999, 2)]),
        ("cuhksysu", ["cropped_image/p99999_n12_s00001_hard0.png"], [(99999, 1)]),
    ],
)
def test_large_numbers(tmp_path, name, files, expected):
    draw(tmp_path / name, *files)
    assert [(r.pid, r.camid) for r in read_set(name, tmp_path)] == expected


def test_hidden_and_other_files_are_ignored(tmp_path):
    root = draw(tmp_path / "viper", *VIPER, "cam_a/.x.bmp", "cam_b/._000_90.bmp", ".git/000_0.bmp", "cover.jpg")
    for other in ("cam_a/Thumbs.db", "cam_b/.DS_Store", "readme.txt"):
        (root / other).touch()
    assert len(read_set("viper", tmp_path)) == 3


@pytest.mark.parametrize(
    ("name", "files", "wrong", "sentence"),
    [
        ("market1501", MARKET, ["query/a.jpg", "bounding_box_train/b.jpg"], r"train/b\.jpg: .*\(2 such names in all\)"),
        ("market1501", MARKET, ["query/0001_0002_c1s1.jpg"], r"0001_0002_c1s1\.jpg: the file name does not start"),
        ("market1501", MARKET, ["query/-2_c1.jpg"], r"<pid>_c<camera> .*CSV manifest"),
        ("cuhk01", ["campus/0001001.png"], ["campus/0001005.png"], r"0001005\.png: .*seven digits"),
        ("cuhk01", ["campus/0001001.png"], ["campus/00010021.png"], r"00010021\.png: "),
        ("cuhk02", CUHK02, ["P3/cam2/first_1.png"], r"P3/cam2/first_1\.png: .* 001_1\.png"),
        ("cuhk02", CUHK02, ["P3/cam2/12345_1.png"], r"12345_1\.png: "),
        ("cuhk03", ["images_detected/1_001_1_01.png"], ["images_detected/1_001_3_01.png"], "1_001_3_01"),
        ("cuhk03", ["images_detected/1_001_1_01.png"], ["images_detected/6_001_1_01.png"], "6_001_1_01"),
        ("cuhksysu", [], ["cropped_image/p00001_p00002_s00001_hard0.png"], "p00001_p00002"),
        ("viper", VIPER, ["cam_b/000_001_90.bmp", "cam_b/x.bmp"], r"000_001_90\.bmp: .*\(2 such names in all\)"),
        ("prid2011", [f"single_shot/{n}" for n in PRID], ["single_shot/cam_b/person_1.png"], r"person_1\.png"),
        ("prid2011", [f"multi_shot/{n}" for n in PRID], ["multi_shot/cam_b/new/0001.png"], r"new/0001\.png"),
        ("grid", GRID, ["gallery/0001.jpeg"], r"0001\.jpeg: .*<pid>_<camera>"),
        ("grid", GRID, ["gallery/0001_0002_3_25004.jpeg"], r"0001_0002_3_25004\.jpeg: .*<pid>_<camera>"),
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
