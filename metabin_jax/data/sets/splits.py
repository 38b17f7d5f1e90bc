"""The ten single-shot splits of the small targets: which images are queries and which are the gallery.

VIPeR, PRID2011, GRID and i-LIDS have ten splits. Half of the people are left out: they were for training when people
trained on these sets. Each of the others has one query and one gallery image. The rest of the gallery are distractors.
The splits come from drawn_splits/, drawn once by `experiments.draw_splits`, or from a file.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.records import Record
from metabin_jax.data.sets.catalogue import SETS, SINGLE_SHOT, check_counts
from metabin_jax.data.sets.readers import CAMERAS
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import read_json

DRAWN = Path(__file__).parent / "drawn_splits"
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]  # of the queries, of the gallery


def single_shot_splits(target: str, records: Sequence[Record], file: str | Path | None = None) -> list[Rows]:
    """The splits of `target`, one of SINGLE_SHOT, as rows of its `records`.

    Rows come by pid, then camid, then path, so the order of the records changes nothing. VIPeR and PRID2011 take
    their queries from view a, GRID from its probes, i-LIDS one image per person and another one for the gallery.

    Args:
      records: all those of the target, and no others.
      file: of splits, instead of the shipped ones: a .json with a list of {"query", "gallery"} of image paths or of
        [path, ...] (the last parts of a path say which image; labels are the records'), or of {"test"} person numbers
        as there are for PRID2011; or GRID's own features_and_partitions.mat. Of VIPeR files that hold every split
        twice, once from view b to view a, the splits from view a count.

    Raises FileNotFoundError for the file, and UserError if the set is incomplete or the file is wrong.
    """
    check_counts(SETS[target], records)
    images = _Images(target, records)
    if file is None:
        splits = _read_drawn(images)
    elif Path(file).is_file():
        splits = (_read_partitions if Path(file).suffix == ".mat" else _read_listed)(images, Path(file))
    else:
        raise FileNotFoundError(f"The file of splits {file} does not exist.")
    for number, rows in enumerate(splits):
        _check(images, *rows, f"{file or 'the shipped splits'}, split {number} of {target}")
    return splits


def split_source(target: str, file: str | Path | None = None) -> str:
    """Where the splits of a target come from, for the note below a table; "" for the domain's own."""
    if file is not None:
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
        kind = "official partitions" if Path(file).suffix == ".mat" else "file of splits"
        return f"{kind} {Path(file).name} (sha256 {digest})"
    return "shipped with metabin_jax" if target in SINGLE_SHOT else ""


class _Images:
    """The images of a single-shot target: sorted rows, labels, and the side of a split they can be on."""

    def __init__(self, target: str, records: Sequence[Record]):
        self.target, self.records, self.size = target, records, SINGLE_SHOT[target]
        self.pid = np.array([record.pid for record in records], np.int64)
        self.camid = np.array([record.camid for record in records], np.int64)
        everything = range(len(records))
        self.order = np.array(
            sorted(everything, key=lambda row: (records[row].pid, records[row].camid, records[row].path))
        )
        if target == "grid":
            split = np.array([record.split for record in records])
            self.in_query, self.in_gallery = split == "query", split == "gallery"
        elif target == "ilids":
            self.in_query = self.in_gallery = np.ones(len(records), bool)
        else:
            self.in_query, self.in_gallery = self.camid == CAMERAS["a"], self.camid == CAMERAS["b"]
        self.person = np.intersect1d(self.pid[self.in_query], self.pid[self.in_gallery])
        if len(self.person) != self.size.persons:
            raise UserError(
                f"{target}: {len(self.person)} persons have an image on both sides where {self.size.persons} belong:"
                " the copy is incomplete, changed, or of another version."
            )

    def of_persons(self, test_pid: NDArray[np.int64]) -> Rows:
        """Queries of these persons; a gallery of all but the other persons."""
        in_query = self.in_query & np.isin(self.pid, test_pid)
        in_gallery = self.in_gallery & ~np.isin(self.pid, np.setdiff1d(self.person, test_pid))
        return self.order[in_query[self.order]], self.order[in_gallery[self.order]]

    def of_images(self, test_pid: NDArray[np.int64], numbers: Sequence[tuple[int, int]]) -> Rows:
        """Of n images of a person, number first mod n is the query; second mod n-1 counts the others from there on."""
        pairs = []
        for pid, (first, second) in zip(test_pid, numbers, strict=True):
            own = self.order[self.pid[self.order] == pid]
            if len(own) < 2:
                raise UserError(
                    f"{self.target}: person {pid} has one image, but one query and one for the gallery belong."
                )
            query = first % len(own)
            pairs.append((own[query], own[(query + 1 + second % (len(own) - 1)) % len(own)]))
        query_row, gallery_row = np.array(pairs).T
        return query_row, gallery_row


def _read_drawn(images: _Images) -> list[Rows]:
    splits = []
    for split in read_json(DRAWN / f"{images.target}.json")["splits"]:
        test_pid = images.person[split["test"]]
        numbers = split.get("images_of")
        splits.append(images.of_images(test_pid, numbers) if numbers else images.of_persons(test_pid))
    return splits


def _read_listed(images: _Images, file: Path) -> list[Rows]:
    try:
        splits = [_listed(images, split, file) for split in read_json(file, "get it again")]
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f'{file} is no list of {{"query", "gallery"}} or {{"test"}} splits ({error!r}).') from error
    if images.target == "viper":
        splits = [(query, gallery) for query, gallery in splits if not images.in_gallery[query].all()]
    if not splits:
        raise UserError(f"{file} holds no split of {images.target}.")
    return splits


def _listed(images: _Images, split: dict[str, Any], file: Path) -> Rows:
    if "query" not in split:
        return images.of_persons(np.array(split["test"], np.int64))
    # The file's name alone, unless two views share it.
    names = {Path(record.path).name for record in images.records}
    depth = 1 if len(names) == len(images.records) else 2
    row_of = {Path(record.path).parts[-depth:]: row for row, record in enumerate(images.records)}

    def rows(items: Sequence[Any]) -> NDArray[np.int64]:
        paths = [item if isinstance(item, str) else item[0] for item in items]
        if missing := [path for path in paths if Path(path).parts[-depth:] not in row_of]:
            raise UserError(f"{file} names {missing[0]}, which is not among the images of {images.target}.")
        chosen = np.array([row_of[Path(path).parts[-depth:]] for path in paths], np.int64)
        return images.order[np.isin(images.order, chosen)]

    return rows(split["query"]), rows(split["gallery"])


def _read_partitions(images: _Images, file: Path) -> list[Rows]:
    """GRID's ten official partitions: cells of trainIdxAll, structs whose third field holds the training persons."""
    if images.target != "grid":
        raise UserError(f"{file}: a .mat file holds the partitions of grid, not of {images.target}.")
    import scipy.io  # takes half a second

    try:
        cells = scipy.io.loadmat(file, variable_names=["trainIdxAll"])["trainIdxAll"].ravel()
        train = [np.asarray(cell[0, 0][2], np.int64).ravel() for cell in cells]
    except (KeyError, IndexError, TypeError, ValueError, NotImplementedError, scipy.io.matlab.MatReadError) as error:
        raise UserError(f"{file} is not GRID's features_and_partitions.mat ({error!r}).") from error
    return [images.of_persons(np.setdiff1d(images.person, pid)) for pid in train]


def _check(images: _Images, query_row: NDArray[np.int64], gallery_row: NDArray[np.int64], where: str) -> None:
    test, gallery = images.size.test, images.size.gallery
    if (len(query_row), len(gallery_row)) != (test, gallery):
        sizes = f"{len(query_row)} query and {len(gallery_row)} gallery images where {test} and {gallery} belong."
        raise UserError(f"{where}: {sizes}")
    query_pid, gallery_pid = images.pid[query_row], images.pid[gallery_row]
    matches = np.sort(gallery_pid[np.isin(gallery_pid, query_pid)])
    if not np.array_equal(matches, np.unique(query_pid)) or np.intersect1d(query_row, gallery_row).size:
        raise UserError(f"{where}: a person has not exactly one query and one other gallery image.")
