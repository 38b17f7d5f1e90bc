"""The four small targets at full size as lists of records: real file names, made-up persons, no pictures."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from metabin_jax.data.records import Record


def viper(root: str = "/data") -> list[Record]:
    """632 persons among the numbers 0 to 873; a view's angle is part of the name, and often the same in both."""
    pids = [number * 873 // 631 for number in range(632)]
    return [
        Record(f"{root}/viper/cam_{view}/{pid:03}_{45 * (pid % (2 + camid))}.bmp", pid, camid, "viper", "all")
        for camid, view in enumerate("ab", start=1)
        for pid in pids
    ]


def prid2011(root: str = "/data") -> list[Record]:
    """385 persons in view a, 749 in view b, the first 200 the same."""
    return [
        Record(
            f"{root}/prid_2011/single_shot/cam_{view}/person_{number:04}.png",
            number + (10_000 if view == "a" and number > 200 else 0),
            camid,
            "prid2011",
            "all",
        )
        for camid, (view, last) in enumerate((("a", 385), ("b", 749)), start=1)
        for number in range(1, last + 1)
    ]


def grid(root: str = "/data") -> list[Record]:
    """250 probes, their matches, and 775 distractors of pid 0."""
    names = [("probe", "query", pid, 1 + pid % 3, pid) for pid in range(1, 251)]
    names += [("gallery", "gallery", pid, 5 + pid % 3, pid) for pid in range(1, 251)]
    names += [("gallery", "gallery", 0, 2 + number % 6, number) for number in range(775)]
    return [
        Record(f"{root}/GRID/{folder}/{pid:04}_{camera}_{number}_1_1_9_9.jpeg", pid, camera, "grid", split)
        for folder, split, pid, camera, number in names
    ]


def ilids(root: str = "/data") -> list[Record]:
    """119 persons with 2 to 8 images, 476 in all."""
    counts = [2 + (0, 6, 1, 2, 1)[pid % 5] for pid in range(118)] + [3]
    return [
        Record(f"{root}/QMUL-iLIDS/images/{pid:04}{count:03}.jpg", pid, count, "ilids", "all")
        for pid, images in enumerate(counts, start=1)
        for count in range(1, images + 1)
    ]


SMALL_SETS: dict[str, Callable[..., list[Record]]] = {
    "viper": viper,
    "prid2011": prid2011,
    "grid": grid,
    "ilids": ilids,
}


def name(record: Record) -> str:
    """Folder and file: what is the same on every machine."""
    return "/".join(Path(record.path).parts[-2:])


def digest(records: Sequence[Record], splits: Sequence) -> str:
    """Of the image lists of all splits, in their order."""
    lines = [
        " ".join(name(records[row]) for row in rows)
        for split in splits
        for rows in (split.query_row, split.gallery_row)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
