"""Where the images are: lists of Records, read from a folder of domains or from a CSV manifest."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metabin_jax.runtime.errors import UserError

SPLITS = ("train", "query", "gallery", "all")
# Domain folder -> split; "." is the domain folder itself.
SPLIT_FOLDERS = {".": "all", "bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
JUNK_PID = "-1"  # Market-1501's mark for badly detected boxes
NOBODY_PID = "0"  # and, in a gallery, for people who are no query's
MARKET_NAME = re.compile(rf"({JUNK_PID}|\d+)_c(\d+)")
MARKET_PATH = re.compile(rf"(?:({'|'.join(list(SPLIT_FOLDERS)[1:])})/)?{MARKET_NAME.pattern}")  # below the domain
REQUIRED_COLUMNS = ("path", "pid", "camid", "domain")


class Record(NamedTuple):
    """One image. `pid` is unique within its domain only; `split` is one of SPLITS."""

    path: str
    pid: int
    camid: int
    domain: str
    split: str


def is_distractor(record: Record) -> bool:
    """Whether it only stands in a gallery: pid 0 is nobody there (Market-1501's mark, and GRID's)."""
    return record.pid == 0 and record.split == "gallery"


def read_folder(root: str | Path, domains: Sequence[str] = ()) -> list[Record]:
    """Reads root/<domain>/, each domain in Market-1501 naming.

    A domain holds images itself (split "all"), or in bounding_box_train, query and bounding_box_test (splits
    "train", "query", "gallery"), or both. A file name starts with <pid>_c<camid>; pid -1 is junk and left
    out, pid 0 (a distractor in Market-1501) is kept. Hidden files and files that are no images are ignored.
    Records come domain by domain, then in the order of the folders above, then sorted by file name.

    Args:
      root: the folder that holds one folder per domain.
      domains: which domains to read, in this order; all of them, sorted by name, if empty.

    Raises:
      FileNotFoundError: root is not a folder, or a chosen domain is not in it.
      ValueError: root is itself a domain, a domain has no image, or a file name does not match.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"Data folder {root} does not exist or is not a folder.")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if next(images(root), None) or set(names) & set(SPLIT_FOLDERS):
        raise UserError(
            f"{root} holds the images of one domain, but a folder of domains is expected:"
            " point to its parent folder and choose this domain by name."
        )
    if not names:
        raise UserError(f"{root} holds no domain: give the images of each domain a sub-folder of their own.")
    missing = [d for d in domains if d not in names]
    if missing:
        raise FileNotFoundError(f"Domain {missing[0]!r} is not in {root}, which holds: {', '.join(names)}.")
    if len(set(domains)) < len(domains):
        raise ValueError(f"The list of domains names one twice: {', '.join(domains)}.")
    return [record for domain in domains or names for record in read_domain(root / domain, domain)]


def read_csv(path: str | Path) -> list[Record]:
    """Reads a UTF-8 CSV manifest with the header path,pid,camid,domain[,split] (columns in any order).

    A relative path is relative to the CSV's folder. pid may be any text: a domain's texts, sorted, become
    1, 2, ...; as in Market-1501, -1 is junk and left out, and 0 stays 0 (see `is_distractor`). Without the column split
    all are of split "all".
    Records come in the order of the rows.

    Raises:
      FileNotFoundError: there is no such manifest.
      ValueError: the header is wrong, no row is left, or a cell is wrong (names the line and the column).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"CSV manifest {path} does not exist.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [_check_row(row, path, line) for line, row in _rows(file, path)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}).") from error
    rows = [row for row in rows if row["pid"] != JUNK_PID]
    if not rows:
        raise UserError(f"{path} lists no image: add rows below the header.")
    pids: dict[str, dict[str, int]] = {}
    for domain, pid in sorted({(row["domain"], row["pid"]) for row in rows}):
        known = pids.setdefault(domain, {NOBODY_PID: 0})
        known.setdefault(pid, len(known))
    return [
        Record(row["path"], pids[row["domain"]][row["pid"]], int(row["camid"]), row["domain"], row["split"])
        for row in rows
    ]


def images(folder: Path) -> Iterator[Path]:
    """The image files in `folder`, unsorted, but for the hidden ones."""
    for path in folder.iterdir():
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file():
            yield path


def match_names(root: Path, folders: Iterable[str], name: re.Pattern, form: str) -> list[tuple[Path, re.Match]]:
    """Every image in the `folders` below root that exist, with the match of its path below root, written with "/".

    Sorted by file name within a folder. form: of a right name, for the error.

    Raises:
      ValueError: some do not match from their start on (as in `name_error`).
    """
    here = [root / folder for folder in folders if (root / folder).is_dir()]
    paths = [path for folder in here for path in sorted(images(folder), key=lambda p: p.name)]
    matches = [(path, name.match(path.relative_to(root).as_posix())) for path in paths]
    if wrong := [path for path, match in matches if match is None]:
        raise name_error(wrong, form)
    return [(path, match) for path, match in matches if match]


def name_error(wrong: Sequence[Path], form: str) -> UserError:
    """One sentence for all wrong file names: the first, and how many there are."""
    how_many = f" ({len(wrong)} such names in all)" if len(wrong) > 1 else ""
    return UserError(
        f"{wrong[0]}: the file name does not start with {form}{how_many}:"
        " rename it, or list the images in a CSV manifest (path,pid,camid,domain)."
    )


def listed_error(missing: Sequence[Path]) -> UserError:
    """One sentence for all images that a list of the set names and that are not there."""
    return UserError(f"{missing[0]} is listed but does not exist ({len(missing)} such): unpack the set again.")


def read_domain(folder: Path, domain: str) -> list[Record]:
    """The images of one domain, as `read_folder` reads them. Raises ValueError as it does."""
    form = "<pid>_c<camera> as in 0002_c1s1_000451.jpg"
    records = [
        Record(str(path), int(match[2]), int(match[3]), domain, SPLIT_FOLDERS[match[1] or "."])
        for path, match in match_names(folder, SPLIT_FOLDERS, MARKET_PATH, form)
        if match[2] != JUNK_PID
    ]
    if not records:
        raise UserError(
            f"Domain folder {folder} holds no image ({', '.join(EXTENSIONS)}), neither itself nor in"
            f" {', '.join(list(SPLIT_FOLDERS)[1:])}: fill it, remove it, or leave this domain out."
        )
    return records


def _rows(file: Iterator[str], path: Path) -> Iterator[tuple[int, dict]]:
    """Yields (line number, row) for every row, after a check of the header."""
    reader = csv.DictReader(file)
    header = reader.fieldnames or []
    if sorted(set(header) - {"split"}) != sorted(REQUIRED_COLUMNS) or len(set(header)) < len(header):
        raise UserError(
            f"{path}: the header must be path,pid,camid,domain or these and split, not {','.join(header)!r}."
        )
    for row in reader:
        yield reader.line_num, row


def _check_row(row: dict, path: Path, line: int) -> dict[str, str]:
    def fail(column: str, why: str) -> UserError:
        return UserError(f"{path}, line {line}, column {column}: {why}.")

    if None in row or None in row.values():
        raise UserError(f"{path}, line {line}: the number of cells differs from the header's.")
    row = {"split": "all"} | {column: cell.strip() for column, cell in row.items()}
    for column in REQUIRED_COLUMNS:
        if not row[column]:
            raise fail(column, "the cell is empty")
    row["pid"] = row["pid"] if row["pid"].strip("0") else NOBODY_PID  # "0000" is that too
    if not row["camid"].isdecimal():
        raise fail("camid", f"{row['camid']!r} is not a whole number")
    if row["split"] not in SPLITS:
        raise fail("split", f"{row['split']!r} is none of {', '.join(SPLITS)}")
    row["path"] = str(path.parent / row["path"])
    if not Path(row["path"]).is_file():
        raise fail("path", f"there is no file {row['path']}")
    return row
