"""CSV manifests: lists of images with what they show, as people write them."""

import csv
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from metabin_jax.data.records import JUNK_PID, SPLITS, Record, check_numbers
from metabin_jax.runtime.errors import UserError

# Our column -> what others call it. A column of our own name comes first.
ALIASES = {"pid": ("identity", "id", "label"), "camid": ("camera", "cam")}
COLUMNS = ("path", "pid", "camid", "domain", "split")
DELIMITERS = (",", ";", "\t")


def read_csv(path: str | Path) -> list[Record]:
    """Reads a manifest with the columns path and pid, and perhaps camid, domain and split; see `csv_rows`.

    pid may be any text: the texts of a domain, sorted, become 1, 2, ...; as in Market-1501, junk (-1) is left out, and
    0 stays 0 (see `is_distractor`). Without the column domain, all images are of one domain, called like the file.
    Without the column split every image is of split "all". Records come in the order of the rows.

    Raises FileNotFoundError, and UserError if the header is wrong, no row is left, or a cell is wrong (names the line
    and the column).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"CSV manifest {path} does not exist.")
    records, names, cameras, files = [], [], [], Files()
    for where, row in csv_rows(path, ("path", "pid")):
        split, domain = row.get("split") or "all", row.get("domain", path.stem)
        if split not in SPLITS:
            raise UserError(f"{where}, column split: {split!r} is none of {', '.join(SPLITS)}.")
        if not domain:
            raise UserError(f"{where}, column domain: the cell is empty.")
        file = files.find(path.parent, row["path"])
        if not file:
            raise UserError(f"{where}, column path: there is no file {path.parent / row['path']}.")
        if row["pid"] != JUNK_PID:
            names.append((domain, row["pid"] if row["pid"].strip("0") else ""))
            cameras.append((domain, row.get("camid", "")))
            records.append(Record(file, 0, 0, domain, split, row["pid"]))
    if not records:
        raise UserError(f"{path} lists no image: add rows below the header.")
    pids: dict[str, dict[str, int]] = {}
    for domain, name in sorted(set(names)):
        known = pids.setdefault(domain, {"": 0})
        known.setdefault(name, len(known))
    numbers = zip(records, names, numbered(cameras), strict=True)
    return [record._replace(pid=pids[domain][name], camid=camid) for record, (domain, name), camid in numbers]


def numbered(cameras: Sequence[tuple[str, str]]) -> list[int]:
    """A number for each (domain, camera): its own or, if a camera of the domain has another name, its place by name.

    -1 for an unknown camera, which is "" or "-1".
    """
    names: dict[str, set[str]] = {}
    for domain, camera in cameras:
        names.setdefault(domain, set()).update({camera} - {"", "-1"})
    number: dict[tuple[str, str], int] = {}
    for domain, own in names.items():
        if all(name.isdecimal() for name in own):
            number |= {(domain, name): int(name) for name in own}
        else:
            number |= {(domain, name): place for place, name in enumerate(sorted(own), start=1)}
    return [number.get(camera, -1) for camera in cameras]


class Files:
    """Finds files; asks once about a folder, as a question for each of 100,000 files takes seconds."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._flat: dict[str, str] = {}

    def absolute(self, path: str | Path) -> str:
        """The absolute path without "..", which the system follows from where a link leads, not from where it lies."""
        folder, name = os.path.split(os.path.join(os.getcwd(), path))
        if name == "..":
            folder, name = os.path.join(folder, name), ""
        if folder not in self._flat:
            flat, real = os.path.normpath(folder), os.path.realpath(folder)
            self._flat[folder] = flat if os.path.realpath(flat) == real else real
        return os.path.normpath(os.path.join(self._flat[folder], name))

    def find(self, folder: Path, name: str) -> str:
        """The path of a file as a manifest in `folder` names it, or ""; a \\ of Windows may separate its parts."""
        for written in dict.fromkeys((name, name.replace("\\", "/"))):
            path = os.path.join(folder, written)
            parent, own = os.path.split(path)
            if parent not in self._names:
                self._names[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()
            if own in self._names[parent] and not os.path.isdir(path):
                return path
        return ""


def csv_rows(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("PATH, line N", {column: cell}) for every row of a CSV file in UTF-8, spaces around cells removed.

    Columns may have names of ALIASES, and are called by ours; others than COLUMNS keep their names. Cells are separated
    by one of DELIMITERS.

    Raises UserError if the header does not have the required columns, has two for one or one that is nearly called like
    one of COLUMNS, if a required cell is empty, or if a camera has too many digits.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(DELIMITERS, key=first.count))
            header = [(name or "").strip() for name in reader.fieldnames or []]
            reader.fieldnames = [_ours(name, header, path) for name in header]
            if not set(required) <= set(reader.fieldnames) or len(set(header)) < len(header):
                raise UserError(
                    f"{path}: the header must have {', '.join(required)}, each once, and may have "
                    f"{', '.join(name for name in COLUMNS if name not in required)}; it is {','.join(header)!r}."
                )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: the number of cells differs from the header's.")
                row = {column: cell.strip() for column, cell in row.items()}
                if empty := [column for column in required if not row[column]]:
                    raise UserError(f"{where}, column {empty[0]}: the cell is empty.")
                check_numbers(f"{where}, column camid", row.get("camid", ""))
                yield where, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}).") from error


def _ours(name: str, header: Sequence[str], path: Path) -> str:
    """Our name of a column. Raises UserError if another column means the same, or for a misspelt name."""
    for ours, others in ALIASES.items():
        if name in others and ours not in header:
            if (two := [other for other in header if other in others])[1:]:
                raise UserError(
                    f"{path}: the columns {' and '.join(two)} may both be the {ours}: call one of them {ours}."
                )
            return ours
    if name not in COLUMNS and (near := difflib.get_close_matches(name, {*COLUMNS} - {*header}, 1, 0.8)):
        raise UserError(f"{path}: there is a column {name!r}: call it {near[0]!r} if it is that, or otherwise.")
    return name
