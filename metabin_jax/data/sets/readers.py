"""Readers of published data sets: (root, domain) -> Records. `catalogue` maps sets to readers.

The readers of the CUHK sets are in `cuhk`. Sets in Market-1501's layout are read by `records.read_domain`.

Every reader raises UserError for image names that do not fit (it names the first, and says how many) and ignores hidden
files and files of other types. Records come folder by folder, sorted by file name within a folder. Where nothing else
is said, the split is "all": a protocol draws the splits.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from metabin_jax.data.records import Record, match_names, name_error
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


def read_msmt17(root: Path, domain: str) -> list[Record]:
    """MSMT17 (Wei et al., CVPR 2018), V1 in train and test, V2 (faces masked) in mask_train_v2 and mask_test_v2.

    The list_*.txt hold "0000/0000_000_01_0303morning_0008_0.jpg 0": path, pid; the camera is the name's third number.
    list_val belongs to split "train". Test identities are other persons with the same numbers, so 10000 is added.

    Raises UserError if a line does not fit, or lists a file that does not exist.
    """
    train, test = ("train", "test") if (root / "train").is_dir() else ("mask_train_v2", "mask_test_v2")
    records, wrong, missing = [], [], []
    for name, split in MSMT17_LISTS.items():
        for line in sorted((root / name).read_text(encoding="utf-8", errors="replace").splitlines()):
            match = MSMT17_LINE.fullmatch(line.strip())
            if match is None:
                wrong.append(root / name / line)
                continue
            path = root / (train if split == "train" else test) / match[1]
            if not path.is_file():
                missing.append(path)
            pid = int(match[3]) + (0 if split == "train" else TEST_PID)
            records.append(Record(str(path), pid, int(match[2]), domain, split))
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
