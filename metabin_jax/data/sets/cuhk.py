"""Readers of the sets of the Chinese University of Hong Kong, as described in `readers`: (root, domain) -> Records.

CUHK03 and CUHK-SYSU are published in forms that `extraction` turns into image files first.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from metabin_jax.data.records import Record, match_names, name_error, read_domain
from metabin_jax.data.sets.readers import by_names, listed_error
from metabin_jax.runtime.errors import UserError

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
            if match is None:
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
