"""One reader per layout of a published data set: (root, domain) -> Records. `catalogue` maps sets to readers.

The readers of the CUHK sets are in `cuhk`.

Every reader raises UserError for image names that do not fit (it names the first, and says how many) and ignores hidden
files and files of other types. Records come folder by folder, sorted by file name within a folder.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from metabin_jax.data.records import Record, match_names, name_error, read_domain
from metabin_jax.runtime.errors import UserError

TEST_PID = 10_000  # MSMT17 numbers its test identities from 0 again, in four digits
PRID_SHARED = 200
MSMT17_LINE = re.compile(r"((?:.*/)?\d+_\d+_(\d\d)_[^/]*) (\d{1,4})")
MSMT17_LISTS = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
VIPER_NAME = re.compile(r"cam_([ab])/(\d+)_\d+\.")
PRID_NAME = re.compile(r"\w+_shot/cam_([ab])/person_(\d{4})[./]")
GRID_NAME = re.compile(r"(probe|gallery)/(\d+)_(\d{1,2})_")
ILIDS_NAME = re.compile(r"\w+/(\d{4})(\d{3})\.")
CAMERAS = {"a": 1, "b": 2}


def listed_error(missing: Sequence[Path]) -> UserError:
    """One sentence about images that a list names and that do not exist: names the first, and says how many."""
    return UserError(f"{missing[0]} is listed but does not exist ({len(missing)} such): unpack the set again.")


def read_market(root: Path, domain: str) -> list[Record]:
    """Market-1501 (Zheng et al., ICCV 2015) and sets in its layout, which `records.read_folder` describes.

    DukeMTMC-reID (Zheng et al., ICCV 2017) is such a set. Its authors WITHDREW it: it is read for comparisons with
    published numbers only, and new work should not use it.
    """
    return read_domain(root, domain)


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


def read_viper(root: Path, domain: str) -> list[Record]:
    """VIPeR (Gray et al., PETS 2007): cam_a and cam_b (camid 1 and 2) with 000_45.bmp, that is <pid>_<angle>.

    pid 0 is a person. Split "all": a protocol draws the halves for training and test.
    """
    found = match_names(root, ["cam_a", "cam_b"], VIPER_NAME, "<pid>_<angle> as in 000_45.bmp")
    return [Record(str(path), int(m[2]), CAMERAS[m[1]], domain, "all") for path, m in found]


def read_prid2011(root: Path, domain: str) -> list[Record]:
    """PRID2011 (Hirzer et al., SCIA 2011): single_shot/cam_{a,b}/person_0001.png, camid 1 and 2.

    multi_shot, with folders as in cam_a/person_0001/0001.png, is read if single_shot is missing. Persons 1..200 are in
    both views. Above 200 the same number is a different person in each view, so 10000 is added in view a. Split "all":
    the gallery of a protocol is a whole view, and the persons who are in that view only are its distractors.
    """
    shot = "single_shot" if (root / "single_shot").is_dir() else "multi_shot"
    views = [f"{shot}/cam_{view}" for view in CAMERAS]
    people = [path for view in views for path in (root / view).iterdir() if path.is_dir() and path.name[0] != "."]
    folders = views + sorted(path.relative_to(root).as_posix() for path in people)
    found = match_names(root, folders, PRID_NAME, "person_<pid> in four digits as in person_0001.png or person_0001/")
    return [
        Record(
            str(path),
            int(m[2]) + (10_000 if m[1] == "a" and int(m[2]) > PRID_SHARED else 0),
            CAMERAS[m[1]],
            domain,
            "all",
        )
        for path, m in found
    ]


def read_grid(root: Path, domain: str) -> list[Record]:
    """QMUL GRID (Loy et al., CVPR 2009): probe and gallery with 0001_1_25023_116_134_128_330.jpeg, <pid>_<camera>_...

    They are the splits "query" and "gallery". pid 0 in the gallery marks persons who are not among the probes.
    """
    splits = {"probe": "query", "gallery": "gallery"}
    found = match_names(root, splits, GRID_NAME, "<pid>_<camera>_ as in 0001_1_25023_116_134_128_330.jpeg")
    return [Record(str(path), int(m[2]), int(m[3]), domain, splits[m[1]]) for path, m in found]


def read_ilids(root: Path, domain: str) -> list[Record]:
    """QMUL i-LIDS (Zheng et al., BMVC 2009): images or Persons with 0001002.jpg, four digits of pid, three of a count.

    No camera is known. The count serves as camid, so two images of a person never share a camera.
    """
    found = match_names(root, ["images", "Persons"], ILIDS_NAME, "seven digits (pid 4, count 3) as in 0001002.jpg")
    return [Record(str(path), int(m[1]), int(m[2]), domain, "all") for path, m in found]
