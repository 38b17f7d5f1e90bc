"""Extraction of CUHK03 and CUHK-SYSU, from miniatures of the files as they are published."""

import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tqdm.std
from miniatures import draw
from PIL import Image

from metabin_jax.data.sets import extraction
from metabin_jax.data.sets.catalogue import find, read_set
from metabin_jax.data.sets.extraction import ready

# {(pair, person, cell): a picture}; every pair has as many persons as its highest number says, cells 1..10.
CUHK03_AT = [(1, 1, 1), (1, 1, 5), (1, 1, 6), (1, 2, 10), (2, 1, 1), (3, 1, 2), (4, 1, 7), (5, 3, 3), (5, 3, 8)]
CUHK03_NAMES = [
    "1_001_1_01.png",
    "1_001_1_05.png",
    "1_001_2_06.png",
    "1_002_2_10.png",
    "2_001_1_01.png",
    "3_001_1_02.png",
    "4_001_2_07.png",
    "5_003_1_03.png",
    "5_003_2_08.png",
]
NEW_PROTOCOL = "cuhk03_new_protocol_config_detected.mat"


def picture(seed: int, height: int = 5, width: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_cuhk03(path: Path) -> dict[str, np.ndarray]:
    """cuhk-03.mat as MATLAB 7.3 writes it: cell arrays of references, dimensions reversed, an empty cell as [0 0].

    Returns the images, [H, W, 3], by the name that each is to have.
    """
    pictures = {at: picture(seed, height=5 + seed) for seed, at in enumerate(CUHK03_AT)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        cells = file.create_group("#refs#")
        empty = cells.create_dataset("empty", data=np.zeros(2, np.uint64))
        empty.attrs["MATLAB_empty"] = 1
        file.create_dataset("labeled", data=np.zeros(2, np.uint64))
        detected = file.create_dataset("detected", (1, 5), h5py.ref_dtype)
        for pair in range(1, 6):
            people = max(person for other, person, _ in CUHK03_AT if other == pair)
            rows = cells.create_dataset(f"pair{pair}", (10, people), h5py.ref_dtype)
            rows[...] = np.full((10, people), empty.ref, h5py.ref_dtype)
            for at in [at for at in CUHK03_AT if at[0] == pair]:
                image_CWH = pictures[at].transpose(2, 1, 0)
                rows[at[2] - 1, at[1] - 1] = cells.create_dataset("-".join(map(str, at)), data=image_CWH).ref
            detected[0, pair - 1] = rows.ref
    return dict(zip(CUHK03_NAMES, pictures.values(), strict=True))


def write_new_protocol(path: Path) -> None:
    cells = np.empty((len(CUHK03_NAMES), 1), object)
    cells[:, 0] = CUHK03_NAMES
    pid = np.array([[1, 1, 1, 2, 844, 1284, 1361, 1421, 1421]]).T
    index = {"train_idx": [[1], [2], [3], [5]], "query_idx": [[8], [4]], "gallery_idx": [[9], [6], [7]]}
    scipy.io.savemat(path, {"filelist": cells, "labels": pid.astype(float), **index})


def write_person_mat(root: Path, people: list[tuple[str, list[tuple[str, tuple, int]]]]) -> None:
    """annotation/Person.mat: a 1 x n structure array, with another one in each field `scene`."""
    scene_type, person_type = (
        [(field, object) for field in fields]
        for fields in (("imname", "idlocate", "ishard"), ("idname", "nAppear", "scene"))
    )
    array = np.zeros((1, len(people)), person_type)
    for number, (name, scenes) in enumerate(people):
        inner = np.zeros((1, len(scenes)), scene_type)
        for i, (image, box, hard) in enumerate(scenes):
            inner[0, i] = (image, np.array([box], np.int32), np.uint8(hard))
        array[0, number] = (name, np.uint8(len(scenes)), inner)
    (root / "annotation").mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / "annotation/Person.mat", {"Person": array})


def write_cuhksysu(root: Path, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Two scenes (s2.jpg is the negative of s1.jpg), and person p1 in s1.jpg with each of the boxes, p30 in both."""
    (root / "Image/SSM").mkdir(parents=True)
    block = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
    scene = np.repeat(np.repeat(block, 8, 0), 8, 1)  # JPEG keeps 8 x 8 blocks of one colour
    for number, pixels in ((1, scene), (2, 255 - scene)):
        Image.fromarray(pixels).save(root / f"Image/SSM/s{number}.jpg", quality=100, subsampling=0)
    both = [("s2.jpg", (6, 7, 4, 5), 1), ("s1.jpg", (6, 7, 4, 5), 0)]
    write_person_mat(root, [("p1", [("s1.jpg", box, 0) for box in boxes]), ("p30", both)])
    return scene.astype(int)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("where", ["cuhk03/cuhk03_release", "cuhk03", "boxes"])
def test_cuhk03(tmp_path, where):
    """Each picture comes out as it went in, upright, under the number of its cell."""
    pictures = write_cuhk03(tmp_path / where / "cuhk-03.mat")
    folder = ready("cuhk03", tmp_path / where, tmp_path / "ready")
    assert folder == tmp_path / "ready/cuhk03"
    assert names(folder / "images_detected") == CUHK03_NAMES
    for name, pixels in pictures.items():
        with Image.open(folder / "images_detected" / name) as image:
            assert np.array_equal(np.asarray(image), pixels)
            assert not np.array_equal(np.asarray(image), pixels[::-1])
    records = read_set("cuhk03", folder)
    assert [(r.pid, r.camid) for r in records][:4] == [(10001, 1), (10001, 1), (10001, 2), (10002, 2)]
    assert [(r.pid, r.camid) for r in records][-2:] == [(50003, 9), (50003, 10)]


@pytest.mark.parametrize("mat", ["cuhk-03.mat", "cuhk03_release/cuhk-03.mat"])
@pytest.mark.parametrize("protocol", [NEW_PROTOCOL, f"cuhk03_release/{NEW_PROTOCOL}"])
def test_cuhk03np(tmp_path, mat, protocol):
    write_cuhk03(tmp_path / "cuhk03" / mat)
    (tmp_path / "cuhk03/cuhk03_release").mkdir(exist_ok=True)
    write_new_protocol(tmp_path / "cuhk03" / protocol)
    with pytest.raises(ValueError, match="run metabin prepare"):
        read_set("cuhk03np", tmp_path)
    records = read_set("cuhk03np", ready("cuhk03np", tmp_path, tmp_path / "ready"))
    assert [(Path(r.path).name, r.pid, r.camid, r.split) for r in records] == [
        ("1_001_1_01.png", 1, 1, "train"),
        ("1_001_1_05.png", 1, 1, "train"),
        ("1_001_2_06.png", 1, 2, "train"),
        ("2_001_1_01.png", 844, 1, "train"),
        ("1_002_2_10.png", 2, 2, "query"),
        ("5_003_1_03.png", 1421, 1, "query"),
        ("3_001_1_02.png", 1284, 1, "gallery"),
        ("4_001_2_07.png", 1361, 2, "gallery"),
        ("5_003_2_08.png", 1421, 2, "gallery"),
    ]
    assert all(Path(r.path).is_file() for r in records)


def test_a_damaged_list_is_told_before_the_images_are_extracted(tmp_path, monkeypatch):
    write_cuhk03(tmp_path / "cuhk03/cuhk-03.mat")
    (tmp_path / "cuhk03" / NEW_PROTOCOL).touch()
    monkeypatch.setattr(extraction, "_extract_cuhk03", None)
    with pytest.raises(ValueError, match=rf"{NEW_PROTOCOL} is damaged"):
        ready("cuhk03np", tmp_path, tmp_path / "ready")


def test_cuhksysu(tmp_path):
    """A box counts from 1 and includes both ends; what is outside the scene is left out."""
    root = tmp_path / "CUHK-SYSU/dataset"
    scene = write_cuhksysu(root, (1, 1, 8, 8), (8, 2, 7, 7), (15, -3, 30, 13))
    folder = ready("cuhksysu", tmp_path, tmp_path / "ready")
    assert folder == tmp_path / "ready/cuhksysu"
    expected = {
        "p00001_n01_s00001_hard0.png": scene[0:9, 0:9],
        "p00001_n02_s00001_hard0.png": scene[1:9, 7:15],
        "p00001_n03_s00001_hard0.png": scene[0:10, 14:24],
        "p00030_n01_s00002_hard1.png": 255 - scene[6:12, 5:10],
        "p00030_n02_s00001_hard0.png": scene[6:12, 5:10],
    }
    assert names(folder / "cropped_image") == sorted(expected)
    for name, pixels in expected.items():
        with Image.open(folder / "cropped_image" / name) as image:
            crop = np.asarray(image).astype(int)
        assert crop.shape == pixels.shape
        assert np.abs(crop - pixels).max() <= 3  # JPEG rounds
        assert np.abs(crop - np.roll(pixels, 1, (0, 1))).max() > 20  # a box that counts from 0
    assert [r.pid for r in read_set("cuhksysu", folder)] == [1, 1, 1, 30, 30]


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("market1501", "bounding_box_train/0001_c1_1.jpg"),
        ("cuhk03", "images_detected/1_001_1_01.png"),
        ("cuhksysu", "cropped_image/p00001_n01_s00001_hard0.png"),
    ],
)
def test_plain_files_are_left_where_they_are(tmp_path, name, image):
    root = draw(tmp_path / name, image)
    for folder in ("query", "bounding_box_test"):
        (root / folder).mkdir()
    (root / "cuhk-03.mat").touch()  # needed no more
    assert ready(name, root, tmp_path / "ready") == root
    assert ready(name, tmp_path, tmp_path / "ready") == root
    assert not (tmp_path / "ready").exists()


def test_extracted_once(tmp_path, monkeypatch):
    write_cuhksysu(tmp_path / "cuhksysu", (1, 1, 8, 8))
    first = ready("cuhksysu", tmp_path / "cuhksysu", tmp_path / "ready")
    monkeypatch.setattr(extraction, "_cut", None)
    assert ready("cuhksysu", tmp_path / "cuhksysu", tmp_path / "ready") == first
    with pytest.raises(TypeError):  # elsewhere it is not there yet
        ready("cuhksysu", tmp_path / "cuhksysu", tmp_path / "other")


@pytest.mark.parametrize("name", ["cuhk03", "cuhksysu"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_extraction_leaves_nothing(tmp_path, monkeypatch, name, error):
    write_cuhk03(tmp_path / "cuhk03/cuhk-03.mat")
    write_cuhksysu(tmp_path / "cuhksysu", (1, 1, 8, 8))
    saved = []

    def save(self, path):
        if len(saved) == 1:
            raise error
        saved.append(path)
        path.touch()

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(error):
        ready(name, tmp_path / name, tmp_path / "ready")
    assert saved and not names(tmp_path / "ready")


def test_something_else_is_in_the_way(tmp_path):
    write_cuhk03(tmp_path / "cuhk03/cuhk-03.mat")
    with pytest.raises(ValueError, match=r"cuhk03 exists but holds no images extracted before"):
        ready("cuhk03", tmp_path / "cuhk03", tmp_path)  # would be the set's own folder
    assert find(tmp_path / "cuhk03")[0].name == "cuhk03"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def change(path: Path, what: str) -> None:
    """Puts a wrong thing in the place of one of the right ones in cuhk-03.mat."""
    with h5py.File(path, "r+") as file:
        cells, people = file["#refs#"], file["#refs#/pair1"]
        if what == "four pairs":
            pairs = file["detected"][:, :4]
            del file["detected"]
            file.create_dataset("detected", data=pairs, dtype=h5py.ref_dtype)
        elif what == "the other way round":
            file["detected"][0, 0] = cells.create_dataset("turned", data=people[()].T, dtype=h5py.ref_dtype).ref
        elif what == "grey":
            people[0, 0] = cells.create_dataset("grey", data=np.zeros((1, 3, 5), np.uint8)).ref
        else:
            del file["detected"]


@pytest.mark.parametrize("what", ["empty", "text", "cut", "no detected", "four pairs", "the other way round", "grey"])
def test_damaged_cuhk03(tmp_path, what):
    mat = tmp_path / "cuhk03/cuhk-03.mat"
    write_cuhk03(mat)
    if what == "cut":
        cut_short(mat)
    elif what in ("empty", "text"):
        mat.write_text("" if what == "empty" else "no HDF5")
    else:
        change(mat, what)
    with pytest.raises(ValueError, match=r"cuhk-03\.mat is damaged or not CUHK03's \([^\n]*\): get it again\.$"):
        ready("cuhk03", tmp_path, tmp_path / "ready")
    assert not names(tmp_path / "ready")


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("empty", r"Person\.mat is damaged"),
        ("text", r"Person\.mat is damaged"),
        ("cut", r"Person\.mat is damaged"),
        ("no Person", r"Person\.mat is damaged or another file than its name says \(no 'Person'\): get it again\.$"),
        ("a number", r"Person\.mat is damaged"),
        ("no width", r"\(the box of p1 in s1\.jpg is empty\)"),
        ("box of two", r"Person\.mat is damaged"),
        ("outside", r"The box of p00001_n01_s00001_hard0\.png is outside its scene \S*s1\.jpg"),
        ("no scene", r"SSM/s2\.jpg is annotated but does not exist \(1 such\)"),
        ("broken scene", r"SSM/s2\.jpg is broken"),
    ],
)
def test_damaged_cuhksysu(tmp_path, what, sentence):
    root = tmp_path / "cuhksysu"
    boxes = {"no width": (3, 3, 0, 4), "outside": (25, 1, 5, 5), "box of two": (3, 3)}
    write_cuhksysu(root, boxes.get(what, (1, 1, 8, 8)))
    mat, scene = root / "annotation/Person.mat", root / "Image/SSM/s2.jpg"
    if what in ("empty", "text"):
        mat.write_text("" if what == "empty" else "no MATLAB file")
    elif what == "cut":
        cut_short(mat)
    elif what == "broken scene":
        cut_short(scene)
    elif what == "no scene":
        scene.unlink()
    elif what in ("no Person", "a number"):
        scipy.io.savemat(mat, {"Img" if what == "no Person" else "Person": 3})
    with pytest.raises(ValueError, match=sentence):
        ready("cuhksysu", tmp_path, tmp_path / "ready")
    assert not names(tmp_path / "ready")


def test_progress_is_shown_if_it_takes_long(tmp_path, monkeypatch, capsys):
    write_cuhk03(tmp_path / "cuhk03/cuhk-03.mat")
    monkeypatch.setattr(tqdm.std, "time", lambda: 0.0)
    ready("cuhk03", tmp_path, tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(tqdm.std, "time", itertools.count().__next__)  # a second passes at every look at the clock
    ready("cuhk03", tmp_path, tmp_path / "ready")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 5 and lines[-1].startswith("extracting images: 80/80, ")
