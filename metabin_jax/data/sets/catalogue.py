"""The published data sets: recognised by their folders, read into Records, checked against their published counts."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from metabin_jax.data.records import Record, is_distractor, read_domain
from metabin_jax.data.sets import readers
from metabin_jax.runtime.errors import UserError

MARKET_FOLDERS = "bounding_box_train query bounding_box_test"
MSMT17_LISTS = " ".join(readers.MSMT17_LISTS)
SEVEN_DIGITS = 7 * "[0-9]"
CUHK03_FOLDERS = ("cuhk03", "cuhk03release")
CUHK03_MAT_AT = (readers.CUHK03_MAT, f"{readers.CUHK03_RELEASE}/{readers.CUHK03_MAT}")
NEW_PROTOCOL_AT = (readers.NEW_PROTOCOL, f"{readers.CUHK03_RELEASE}/{readers.NEW_PROTOCOL}")


@dataclass(frozen=True)
class DataSet:
    """One data set; its name is the domain of its records.

    folders: accepted names of its folder or of one within it, in lower case without punctuation.
    layouts: alternatives of what its root holds, each as globs, between spaces, that all match something.
    published: some of the entries of `counts`; an entry of a split is named as in "train ids".
    raw: like layouts, for a set whose images have to be extracted first.
    part_of: the set whose images these are. A folder that holds both counts as that set, unless this one is asked for.
    note: added to the message if the counts differ.
    """

    name: str
    folders: tuple[str, ...]
    layouts: tuple[str, ...]
    read: readers.Reader
    published: dict[str, int]
    raw: tuple[str, ...] = ()
    part_of: str = ""
    note: str = ""

    def is_raw(self, root: Path) -> bool:
        """Whether the set at `root` has to be extracted first (see `extraction`)."""
        return not _holds(root, self.layouts)

    def __str__(self) -> str:
        layouts = " or ".join(", ".join(layout.split()) for layout in self.layouts + self.raw)
        return f"{self.name} (below {' or '.join(self.folders)}: {layouts})"


def _published(ids: int, images: int, distractors: int = 0, **splits: tuple[int, int]) -> dict[str, int]:
    """Published counts: the sum over all splits, without junk and distractors, and (ids, images) of official splits.

    Sources: the papers named at the readers; for CUHK03's new protocol, github.com/zhunzhong07/person-re-ranking.
    """
    whole = {"ids": ids, "images": images} | ({"distractors": distractors} if distractors else {})
    for split, (split_ids, split_images) in splits.items():
        whole |= {f"{split} ids": split_ids, f"{split} images": split_images}
    return whole


_ALL = (
    DataSet("cuhk01", ("cuhk01",), (f"campus/{SEVEN_DIGITS}.*",), readers.read_cuhk01, _published(971, 3_884)),
    DataSet(
        "cuhk02",
        ("cuhk02", "dataset"),
        (" ".join(readers.CUHK02_FOLDERS),),
        readers.read_cuhk02,
        _published(1_816, 7_264),
    ),
    DataSet(
        "cuhk03",
        CUHK03_FOLDERS,
        (readers.CUHK03_IMAGES,),
        readers.read_cuhk03,
        _published(1_467, 14_097),
        CUHK03_MAT_AT,
    ),
    # Market-1501 (Zheng et al., ICCV 2015).
    DataSet(
        "market1501",
        ("market1501", "market1501v150915"),
        (MARKET_FOLDERS,),
        read_domain,
        _published(1_501, 29_419, 2_798, train=(751, 12_936), query=(750, 3_368), gallery=(750, 13_115)),
    ),
    # DukeMTMC-reID (Zheng et al., ICCV 2017). Its authors WITHDREW it: it is read for comparisons with published
    # numbers only, and new work should not use it.
    DataSet(
        "dukemtmcreid",
        ("dukemtmcreid", "dukemtmc"),
        (MARKET_FOLDERS,),
        read_domain,
        _published(1_812, 36_411, train=(702, 16_522), query=(702, 2_228), gallery=(1_110, 17_661)),
    ),
    DataSet(
        "cuhk03np",
        ("cuhk03np", "detected", *CUHK03_FOLDERS),
        (MARKET_FOLDERS, *(f"{readers.CUHK03_IMAGES} {place}" for place in NEW_PROTOCOL_AT)),
        readers.read_cuhk03np,
        _published(1_467, 14_097, train=(767, 7_365), query=(700, 1_400), gallery=(700, 5_332)),
        raw=tuple(f"{mat} {place}" for mat in CUHK03_MAT_AT for place in NEW_PROTOCOL_AT),
        part_of="cuhk03",
    ),
    DataSet(
        "cuhksysu",
        ("cuhksysu", "dataset"),
        ("cropped_image",),
        readers.read_cuhksysu,
        _published(11_934, 34_574),
        raw=(f"{readers.CUHKSYSU_SCENES} {readers.CUHKSYSU_MAT}",),
    ),
    DataSet(
        "msmt17",
        ("msmt17", "msmt17v1", "msmt17v2"),
        (f"train test {MSMT17_LISTS}", f"mask_train_v2 mask_test_v2 {MSMT17_LISTS}"),
        readers.read_msmt17,
        _published(4_101, 126_441, train=(1_041, 32_621), query=(3_060, 11_659), gallery=(3_060, 82_161)),
    ),
    DataSet(
        "viper", ("viper", "viperv10"), ("cam_a/[0-9]*_* cam_b/[0-9]*_*",), readers.read_viper, _published(632, 1_264)
    ),
    DataSet(
        "prid2011",
        ("prid2011",),
        ("single_shot/cam_a single_shot/cam_b", "multi_shot/cam_a multi_shot/cam_b"),
        readers.read_prid2011,
        _published(934, 1_134),
        note="These are the counts of single_shot; multi_shot, read where that is missing, has more images of"
        " each person.",
    ),
    DataSet(
        "grid",
        ("grid", "undergroundreid"),
        ("probe/[0-9]*_* gallery/[0-9]*_*",),
        readers.read_grid,
        _published(250, 500, distractors=775),
    ),
    DataSet(
        "ilids",
        ("qmulilids", "ilids", "ilidspedestrian"),
        (f"images/{SEVEN_DIGITS}.*", f"Persons/{SEVEN_DIGITS}.*"),
        readers.read_ilids,
        _published(119, 476),
    ),
)
SETS = {data_set.name: data_set for data_set in _ALL}


class SingleShot(NamedTuple):
    """Sizes of a split: persons with an image in both cameras, how many of them are tested, images in the gallery."""

    persons: int
    test: int
    gallery: int


SINGLE_SHOT = {
    "viper": SingleShot(632, 316, 316),
    "prid2011": SingleShot(200, 100, 649),  # of view b, 549 distractors
    "grid": SingleShot(250, 125, 900),  # 775 distractors
    "ilids": SingleShot(119, 60, 60),
}


def find(path: str | Path, name: str = "") -> tuple[DataSet, Path]:
    """Recognises the one data set that a folder holds: (the set, its root, which is the folder or one below it).

    The folder itself may have any name; folders below it need one of a set's names. If two sets have the same layout
    (Market-1501 and DukeMTMC-reID), the folder's name decides.

    name: which of SETS to look for, others beside it are ignored; any set if empty.

    Raises FileNotFoundError if path is not a folder, and UserError for an unknown name or if there is no such data set,
    or may be several (lists what was looked for or found).
    """
    if name and name not in SETS:
        raise UserError(f"There is no data set {name!r}; known are {', '.join(SETS)}.")
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"Data folder {path} does not exist or is not a folder.")
    names = [name] if name else list(SETS)
    found = [(data_set, root) for data_set, root in _all_at(path) if data_set.name in names]
    found = [(data_set, root) for data_set, root in found if (SETS.get(data_set.part_of), root) not in found]
    if not found:
        sought = str(SETS[name]) if name else f"{', '.join(names)}; one of them by name says what its folder must hold"
        raise UserError(f"{path} does not hold, itself or below, what was looked for: {sought}.")
    if len(found) > 1:
        candidates = ", ".join(f"{data_set.name} in {root}" for data_set, root in found)
        raise UserError(
            f"{path} may hold {candidates}: point to one folder, named as its set, or above one that is your own."
        )
    return found[0]


def names_at(path: str | Path) -> list[str]:
    """The sets that a folder, or one below it, holds or may hold (two share a layout); none if path is not a folder."""
    return list(dict.fromkeys(data_set.name for data_set, _ in _all_at(Path(path)))) if Path(path).is_dir() else []


def read_set(name: str, path: str | Path) -> list[Record]:
    """Reads the data set `name` (one of SETS) from its own folder or from one that holds it, perhaps beside others.

    Its records have `name` as their domain. They are without junk and with distractors (see `counts`).
    Raises what `find` does, and UserError if it has no image or wrong file names, or has to be extracted first.
    """
    data_set, root = find(path, name)
    if data_set.is_raw(root):
        raise UserError(f"{root} holds {name} as it was published: run metabin prepare, which extracts its images.")
    records = data_set.read(root, name)
    if not records:
        raise UserError(f"{root} has the folders of {name} but no image in them: unpack the set again.")
    return records


def counts(records: Sequence[Record]) -> dict:
    """Counts records: {"ids", "images", "cameras", "distractors", "splits": {split: {"ids", "images", "cameras"}}}.

    All are ints. Distractors (see `is_distractor`) are not among the other counts.
    """
    people = [record for record in records if not is_distractor(record)]
    splits = sorted({record.split for record in people})
    return {
        **_count(people),
        "distractors": len(records) - len(people),
        "splits": {split: _count([record for record in people if record.split == split]) for split in splits},
    }


def check_counts(data_set: DataSet, records: Sequence[Record]) -> None:
    """Raises UserError if `counts` differ from the published ones, with both, and `data_set.note`."""
    found = counts(records)
    for split, numbers in found["splits"].items():
        found |= {f"{split} {key}": number for key, number in numbers.items()}
    wrong = [key for key, number in data_set.published.items() if found.get(key, 0) != number]
    if wrong:
        raise UserError(
            f"{data_set.name}: found {', '.join(f'{found.get(key, 0):,} {key}' for key in wrong)} where"
            f" {', '.join(f'{data_set.published[key]:,} {key}' for key in wrong)} are published:"
            f" the copy is incomplete, changed, or of another version. {data_set.note}".rstrip()
        )


def _count(records: Sequence[Record]) -> dict[str, int]:
    return {
        "ids": len({(record.domain, record.pid) for record in records}),
        "images": len(records),
        "cameras": len({(record.domain, record.camid) for record in records}),
    }


def _all_at(path: Path) -> list[tuple[DataSet, Path]]:
    """Every set at `path` or, if there is none, below it. Does not search below a set."""
    if own := [(data_set, path) for data_set in SETS.values() if _holds(path, data_set.layouts + data_set.raw)]:
        return [(data_set, path) for data_set, _ in own if _plain(path) in data_set.folders] or own
    known = {folder for data_set in SETS.values() for folder in data_set.folders}
    below = sorted(child for child in path.iterdir() if _plain(child) in known and child.is_dir())
    return [found for child in below for found in _all_at(child)]


def _plain(folder: Path) -> str:
    return re.sub(r"[\W_]", "", Path(os.path.abspath(folder)).name.lower())


def _holds(root: Path, layouts: tuple[str, ...]) -> bool:
    return any(all(any(root.glob(part)) for part in layout.split()) for layout in layouts)
