"""The published data sets: recognised by their folders, read into Records, checked against their published counts."""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metabin_jax.data import set_readers
from metabin_jax.data.records import Record

MARKET_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
MSMT17_LISTS = tuple(set_readers.MSMT17_LISTS)


@dataclass(frozen=True)
class DataSet:
    """One data set; its name is the domain of its records.

    folders: accepted names of its folder or of one within it, in lower case without punctuation. layouts: what its
    root holds, as globs all of which match something; alternatives. published: some of the entries of `counts`.
    """

    name: str
    folders: tuple[str, ...]
    layouts: tuple[tuple[str, ...], ...]
    read: Callable[[Path, str], list[Record]]
    published: Mapping[str, int]

    def is_at(self, root: Path) -> bool:
        return any(all(any(root.glob(part)) for part in layout) for layout in self.layouts)

    def __str__(self) -> str:
        layouts = " or ".join(", ".join(layout) for layout in self.layouts)
        return f"{self.name} (below {' or '.join(self.folders)}: {layouts})"


# Published counts: the sum over all splits, without junk and distractors. They are those of the papers named at the
# readers; for Market-1501 750 + 751 identities, 12,936 + 3,368 + 13,115 images; for PRID2011 the single-shot version.
SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            "cuhk02",
            ("cuhk02", "dataset"),
            (tuple(f"P{pair}/cam{camera}" for pair in set_readers.PAIRS for camera in (1, 2)),),
            set_readers.read_cuhk02,
            {"ids": 1_816, "images": 7_264},
        ),
        DataSet(
            "cuhk03",
            ("cuhk03", "cuhk03release"),
            (("images_detected",), ("cuhk-03.mat",)),
            set_readers.read_cuhk03,
            {"ids": 1_467, "images": 14_097},
        ),
        DataSet(
            "market1501",
            ("market1501", "market1501v150915"),
            (MARKET_FOLDERS,),
            set_readers.read_market,
            {"ids": 1_501, "images": 29_419},
        ),
        DataSet(
            "dukemtmcreid",
            ("dukemtmcreid", "dukemtmc"),
            (MARKET_FOLDERS,),
            set_readers.read_market,
            {"ids": 1_812, "images": 36_411},
        ),
        DataSet(
            "cuhksysu",
            ("cuhksysu",),
            (("cropped_image",),),
            set_readers.read_cuhksysu,
            {"ids": 11_934, "images": 34_574},
        ),
        DataSet(
            "msmt17",
            ("msmt17", "msmt17v1", "msmt17v2"),
            (("train", "test", *MSMT17_LISTS), ("mask_train_v2", "mask_test_v2", *MSMT17_LISTS)),
            set_readers.read_msmt17,
            {"ids": 4_101, "images": 126_441},
        ),
        DataSet(
            "viper",
            ("viper", "viperv10"),
            (("cam_a/[0-9]*_*", "cam_b/[0-9]*_*"),),
            set_readers.read_viper,
            {"ids": 632, "images": 1_264},
        ),
        DataSet(
            "prid2011",
            ("prid2011",),
            (("single_shot/cam_a", "single_shot/cam_b"), ("multi_shot/cam_a", "multi_shot/cam_b")),
            set_readers.read_prid2011,
            {"ids": 934, "images": 1_134},
        ),
        DataSet(
            "grid",
            ("grid", "undergroundreid"),
            (("probe/[0-9]*_*", "gallery/[0-9]*_*"),),
            set_readers.read_grid,
            {"ids": 250, "images": 500, "distractors": 775},
        ),
        DataSet(
            "ilids",
            ("qmulilids", "ilids", "ilidspedestrian"),
            ((f"images/{7 * '[0-9]'}.*",), (f"Persons/{7 * '[0-9]'}.*",)),
            set_readers.read_ilids,
            {"ids": 119, "images": 476},
        ),
    )
}


def find(path: str | Path, names: Collection[str] = tuple(SETS)) -> tuple[DataSet, Path]:
    """Recognises the one data set that a folder holds: (the set, its root, which is the folder or one below it).

    Only sets of these `names` count.

    The folder itself counts whatever its name, folders below it if theirs is one of a set's names. Where two sets
    share a layout (Market-1501 and DukeMTMC-reID), the folder's name decides.

    Raises:
      FileNotFoundError: path is not a folder.
      ValueError: it holds no known data set (lists what was looked for), or may hold several (lists them).
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"Data folder {path} does not exist or is not a folder.")
    found = [(data_set, root) for data_set, root in _all_at(path) if data_set.name in names]
    if not found:
        sought = "; ".join(str(SETS[name]) for name in names)
        raise ValueError(f"{path} does not hold, itself or below, what was looked for: {sought}.")
    if len(found) > 1:
        candidates = ", ".join(f"{data_set.name} in {root}" for data_set, root in found)
        raise ValueError(f"{path} may hold {candidates}: point to one folder, named as its set.")
    return found[0]


def recognised(path: str | Path) -> bool:
    """Whether a folder holds, itself or below, what looks like a known data set."""
    return bool(_all_at(Path(path)))


def names_at(path: str | Path) -> list[str]:
    """The sets that a folder holds, itself or below, or may hold where two share a layout; none if it is no folder."""
    return list(dict.fromkeys(data_set.name for data_set, _ in _all_at(Path(path)))) if Path(path).is_dir() else []


def read_set(name: str, path: str | Path) -> list[Record]:
    """Reads the data set `name` (one of SETS) from its own folder or from one that holds it, perhaps beside others.

    Returns:
      Its records, with `name` as their domain; junk left out, distractors (see `counts`) kept.

    Raises:
      FileNotFoundError: path is not a folder.
      ValueError: unknown name; the set is not there, or more than once; it has no image, or wrong file names.
    """
    if name not in SETS:
        raise ValueError(f"There is no data set {name!r}; known are {', '.join(SETS)}.")
    data_set, root = find(path, [name])
    records = data_set.read(root, name)
    if not records:
        raise ValueError(f"{root} has the folders of {name} but no image in them: unpack the set again.")
    return records


def counts(records: Sequence[Record]) -> dict:
    """What there is: {"ids", "images", "cameras", "distractors", "splits": {split: {"ids", "images", "cameras"}}}.

    All ints. A distractor is a gallery image of pid 0 (Market-1501's mark, and GRID's); it counts as nothing else.
    """
    people = [record for record in records if not (record.pid == 0 and record.split == "gallery")]
    splits = sorted({record.split for record in people})
    return {
        **_count(people),
        "distractors": len(records) - len(people),
        "splits": {split: _count([record for record in people if record.split == split]) for split in splits},
    }


def check_counts(data_set: DataSet, records: Sequence[Record]) -> None:
    """Raises ValueError where `counts` differ from the published ones, with both."""
    found = counts(records)
    if any(found[key] != number for key, number in data_set.published.items()):
        raise ValueError(
            f"{data_set.name}: found {', '.join(f'{found[key]:,} {key}' for key in data_set.published)} where"
            f" {', '.join(f'{number:,} {key}' for key, number in data_set.published.items())} are published:"
            " the copy is incomplete, changed, or of another version."
        )


def _count(records: Sequence[Record]) -> dict[str, int]:
    return {
        "ids": len({(record.domain, record.pid) for record in records}),
        "images": len(records),
        "cameras": len({(record.domain, record.camid) for record in records}),
    }


def _all_at(path: Path) -> list[tuple[DataSet, Path]]:
    """Every set at `path` or, if there is none, below it. Does not look below a set for a set."""
    own = [data_set for data_set in SETS.values() if data_set.is_at(path)]
    if own:
        return [(data_set, path) for data_set in own if _plain(path) in data_set.folders] or [(s, path) for s in own]
    known = {folder for data_set in SETS.values() for folder in data_set.folders}
    below = sorted(child for child in path.iterdir() if _plain(child) in known and child.is_dir())
    return [found for child in below for found in _all_at(child)]


def _plain(folder: Path) -> str:
    return re.sub(r"[\W_]", "", Path(os.path.abspath(folder)).name.lower())
