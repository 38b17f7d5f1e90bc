"""Readers of published data sets: (root, domain) -> Records. `catalogue` maps sets to readers.

Sets in Market-1501's layout are read by `records.read_domain`. CUHK03 and CUHK-SYSU are published in forms that
`extraction` turns into image files first.

Every reader raises UserError for image names that do not fit (it names the first, and says how many) and ignores hidden
files and files of other types. Records come folder by folder, sorted by file name within a folder. Where nothing else
is said, the split is "all": a protocol draws the splits.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metabin_jax.data.records import Record, match_names, name_error, read_domain
from metabin_jax.runtime.errors import UserError

Reader = Callable[[Path, str], list[Record]]
TEST_PID = 10_000  # MSMT17 numbers its test identities from 0 again, in four digits
PRID_SHARED = 200
MSMT17_LINE = re.compile(r"((?:.*/)?\d+_\d+_(\d\d)_[^/]*) (\d{1,4})")
MSMT17_LISTS = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
PRID_NAME = r"\w+_shot/cam_([ab])/person_(\d{4})[./]"
CAMERAS = {"a": 1, "b": 2}
PAIRS = range(1, 6)
CUHK02_FOLDERS = tuple(f"P{pair}/cam{camera}" for pair in PAIRS for camera in (1, 2))
PAIR_PID = 10_000  # numbers within a pair have at most four digits
CUHK03_RELEASE = "cuhk03_release"  # the folder of CUHK03's archive
CUHK03_MAT = "cuhk-03.mat"
CUHK03_IMAGES = "images_detected"
NEW_PROTOCOL = "cuhk03_new_protocol_config_detected.mat"
NEW_PROTOCOL_SPLITS = {"train_idx": "train", "query_idx": "query", "gallery_idx": "gallery"}
CUHKSYSU_SCENES = "Image/SSM"
CUHKSYSU_MAT = "annotation/Person.mat"
CUHK03_NAME = rf"{CUHK03_IMAGES}/(?P<pair>[1-5])_(?P<pid>\d{{1,4}})_(?P<view>[12])_\d+\."
CUHK03_FORM = "<pair>_<pid>_<view>_<n> as in 1_001_1_01.png"
CUHKSYSU_NAME = r"cropped_image/p(\d+)_n\d+_s\d+_hard[01]\."


def by_names(
    folders: Sequence[str], name: str, form: str, labels: Callable[[re.Match], tuple[int, int] | tuple[int, int, str]]
) -> Reader:
    """The reader of a set whose file names hold the labels.

    folders: those below the root that hold the images. name: a pattern of the start of a path below the root.
    form: describes a right name, for the error. labels: match -> pid, camid and, unless it is "all", the split.
    """

    def read(root: Path, domain: str) -> list[Record]:
        found = [(path, *labels(match)) for path, match in match_names(root, folders, name, form)]
        return [Record(str(path), pid, camid, domain, *(split or ["all"])) for path, pid, camid, *split in found]

    return read


def listed_error(missing: Sequence[Path]) -> UserError:
    """One sentence about images that a list names and that do not exist: names the first, and says how many."""
    return UserError(f"{missing[0]} is listed but does not exist ({len(missing)} such): unpack the set again.")


def inside(root: Path, listed: Sequence[str]) -> dict[str, Path]:
    """The path in `root` of each file that a list names: of the set, whoever wrote the list.

    Raises UserError for a name that leads out of root: absolute, with "..", or by a link.
    """
    paths = {name: root / name for name in listed}
    real, folders = root.resolve(), dict[Path, Path]()
    for name, path in paths.items():
        folder = folders.setdefault(path.parent, path.parent.resolve())
        end = path.resolve() if path.is_symlink() else folder / path.name
        if ".." in path.parts or not end.is_relative_to(real):
            raise UserError(f"{name} is listed, which leads out of {root}: get the list again.")
    return paths


def read_msmt17(root: Path, domain: str) -> list[Record]:
    """MSMT17 (Wei et al., CVPR 2018), V1 in train and test, V2 (faces masked) in mask_train_v2 and mask_test_v2.

    The list_*.txt hold "0000/0000_000_01_0303morning_0008_0.jpg 0": path, pid; the camera is the name's third number.
    list_val belongs to split "train". Test identities are other persons with the same numbers, so 10000 is added.

    Raises UserError if a line does not fit, or lists a file that does not exist or is not of the set.
    """
    train, test = ("train", "test") if (root / "train").is_dir() else ("mask_train_v2", "mask_test_v2")
    records, wrong, missing = [], [], []
    for name, split in MSMT17_LISTS.items():
        lines = sorted((root / name).read_text(encoding="utf-8", errors="replace").splitlines())
        matches = [MSMT17_LINE.fullmatch(line.strip()) for line in lines]
        wrong += [root / name / line for line, match in zip(lines, matches, strict=True) if match is None]
        found = [match for match in matches if match]
        paths = inside(root / (train if split == "train" else test), [match[1] for match in found])
        missing += [path for path in paths.values() if not path.is_file()]
        for match in found:
            pid = int(match[3]) + (0 if split == "train" else TEST_PID)
            records.append(Record(str(paths[match[1]]), pid, int(match[2]), domain, split))
    if wrong:
        raise name_error(wrong, "<path>/<pid>_<n>_<camera>_... <pid> as in 0000/0000_000_01_0303morning_0008_0.jpg 0")
    if missing:
        raise listed_error(missing)
    return records


# VIPeR (Gray et al., PETS 2007): cam_a and cam_b (camid 1 and 2) with 000_45.bmp. pid 0 is a person.
read_viper = by_names(
    ("cam_a", "cam_b"),
    r"cam_([ab])/(\d+)_\d+\.",
    "<pid>_<angle> as in 000_45.bmp",
    lambda match: (int(match[2]), CAMERAS[match[1]]),
)


def read_prid2011(root: Path, domain: str) -> list[Record]:
    """PRID2011 (Hirzer et al., SCIA 2011): single_shot/cam_{a,b}/person_0001.png, camid 1 and 2.

    multi_shot, with folders as in cam_a/person_0001/0001.png, is read if single_shot is missing. Persons 1..200 are in
    both views. Above 200 the same number is a different person in each view, so 10000 is added in view a. The gallery
    of a protocol is a whole view, and the persons who are in that view only are its distractors.
    """
    shot = "single_shot" if (root / "single_shot").is_dir() else "multi_shot"
    views = [f"{shot}/cam_{view}" for view in CAMERAS]
    people = [path for view in views for path in (root / view).iterdir() if path.is_dir() and path.name[0] != "."]
    folders = views + sorted(path.relative_to(root).as_posix() for path in people)
    records = []
    form = "person_<pid> in four digits as in person_0001.png or person_0001/"
    for path, match in match_names(root, folders, PRID_NAME, form):
        view, pid = match[1], int(match[2])
        own_pid = pid + (10_000 if view == "a" and pid > PRID_SHARED else 0)
        records.append(Record(str(path), own_pid, CAMERAS[view], domain, "all"))
    return records


# QMUL GRID (Loy et al., CVPR 2009): probe and gallery with 0001_1_25023_116_134_128_330.jpeg. They are the splits
# "query" and "gallery". pid 0 in the gallery marks persons who are not among the probes.
read_grid = by_names(
    ("probe", "gallery"),
    r"(probe|gallery)/(\d+)_(\d{1,2})_",
    "<pid>_<camera>_ as in 0001_1_25023_116_134_128_330.jpeg",
    lambda match: (int(match[2]), int(match[3]), {"probe": "query", "gallery": "gallery"}[match[1]]),
)

# QMUL i-LIDS (Zheng et al., BMVC 2009): images or Persons with 0001002.jpg. No camera is known. The count serves as
# camid, so two images of a person never share a camera.
read_ilids = by_names(
    ("images", "Persons"),
    r"\w+/(\d{4})(\d{3})\.",
    "seven digits (pid 4, count 3) as in 0001002.jpg",
    lambda match: (int(match[1]), int(match[2])),
)


def in_pair(match: re.Match) -> tuple[int, int]:
    """pid and camid where identities and cameras are numbered within each pair: 10000 * pair + number, and 1..10."""
    pair = int(match["pair"])
    return PAIR_PID * pair + int(match["pid"]), 2 * (pair - 1) + int(match["view"])


# CUHK01 (Li, Zhao and Wang, ACCV 2012): campus/0001001.png. Images 1 and 2 of a person are from one camera (camid 1),
# images 3 and 4 from the other (camid 2).
read_cuhk01 = by_names(
    ("campus",),
    r"campus/(\d{4})00([1-4])\.",
    "seven digits (pid 4, count 3, from 001 to 004) as in 0001001.png",
    lambda match: (int(match[1]), (int(match[2]) + 1) // 2),
)

# CUHK02 (Li and Wang, CVPR 2013): P1..P5/cam1|cam2/001_1.png.
read_cuhk02 = by_names(
    CUHK02_FOLDERS, r"P(?P<pair>\d)/cam(?P<view>\d)/(?P<pid>\d{1,4})_", "<pid>_ as in 001_1.png", in_pair
)

# CUHK03 (Li et al., CVPR 2014), detected boxes. cuhk-03.mat holds the 20 random splits of the old protocol, and
# `read_cuhk03np` reads the new one.
read_cuhk03 = by_names((CUHK03_IMAGES,), CUHK03_NAME, CUHK03_FORM, in_pair)


def read_cuhk03np(root: Path, domain: str) -> list[Record]:
    """The new protocol of CUHK03 (Zhong et al., CVPR 2017) on detected boxes: 767 identities to train, 700 to test.

    Either as its authors repacked it, in Market-1501's folders (0003_c1_8.png), or as CUHK03's images_detected beside
    their list: filelist (names of images), labels (pids), and train_idx, query_idx, gallery_idx, which count from 1.
    camid is 1 or 2 in both, the view within the camera pair: every person is in one pair only.

    Raises UserError if a name does not fit, or if the list is damaged or names an image that does not exist.
    """
    if not (root / CUHK03_IMAGES).is_dir():
        return read_domain(root, domain)
    names, labels, of_split = read_new_protocol(root)
    records = []
    for split, rows in of_split.items():
        for name, pid in sorted((names[row], labels[row]) for row in rows):
            image = f"{CUHK03_IMAGES}/{name}"
            match = re.match(CUHK03_NAME, image)
            if match is None or Path(name).name != name:
                raise name_error([in_release(root, NEW_PROTOCOL) / name], CUHK03_FORM)
            records.append(Record(str(root / image), pid, int(match["view"]), domain, split))
    there = {entry.name for entry in (root / CUHK03_IMAGES).iterdir()}
    if missing := [Path(record.path) for record in records if Path(record.path).name not in there]:
        raise listed_error(missing)
    return records


def read_cuhksysu(root: Path, domain: str) -> list[Record]:
    """CUHK-SYSU (Xiao et al., CVPR 2017) as crops: cropped_image/p00001_n01_s00001_hard0.png.

    The images are from hand-held cameras and films, so no camera is known. Each image gets its own camid (1, 2, ... in
    the order of the names). Every other image of its identity then counts as another view: an evaluation leaves out the
    image itself only, and every identity has several cameras.
    """
    form = "p<pid>_n<n>_s<scene>_hard<0 or 1> as in p00001_n01_s00001_hard0.png"
    found = match_names(root, ["cropped_image"], CUHKSYSU_NAME, form)
    return [Record(str(path), int(m[1]), camid, domain, "all") for camid, (path, m) in enumerate(found, start=1)]


def in_release(root: Path, name: str) -> Path:
    """The path of a file of CUHK03: in the folder of the archive below root, or in root itself."""
    inside = root / CUHK03_RELEASE / name
    return inside if inside.is_file() else root / name


def read_new_protocol(root: Path) -> tuple[list[str], list[int], dict[str, list[int]]]:
    """The list of CUHK03's new protocol: names and labels of all images, and {split: rows, from 0}."""
    return load_mat(in_release(root, NEW_PROTOCOL), _new_protocol)


def load_mat(path: Path, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """Applies `parse` to the content of a MATLAB file (before version 7.3): structures are dicts, cells are arrays.

    Raises UserError if the file cannot be read, or if `parse` raises anything.
    """
    try:
        import scipy.io  # takes half a second, and few sets need it

        return parse(scipy.io.loadmat(path, simplify_cells=True))
    except Exception as error:  # damaged files make scipy raise nearly anything
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is damaged or another file than its name says ({reason}): get it again.") from error


def _new_protocol(content: dict[str, Any]) -> tuple[list[str], list[int], dict[str, list[int]]]:
    names = [str(name) for name in np.atleast_1d(content["filelist"])]
    labels = [int(label) for label in np.atleast_1d(content["labels"])]
    of_split = {split: [int(i) - 1 for i in np.atleast_1d(content[key])] for key, split in NEW_PROTOCOL_SPLITS.items()}
    if len(names) != len(labels):
        raise ValueError(f"{len(names)} names and {len(labels)} labels")
    people = [name.rsplit("_", 2)[0] for name in names]  # <pair>_<pid>
    if not len(set(people)) == len(set(labels)) == len(set(zip(people, labels, strict=True))):
        raise ValueError("the labels and the persons in the names do not correspond")
    if outside := [row + 1 for rows in of_split.values() for row in rows if not 0 <= row < len(names)]:
        raise ValueError(f"index {outside[0]} among {len(names)} images")
    return names, labels, of_split
