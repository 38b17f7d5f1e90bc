"""Any images at all, with labels where file names or a list give them: what is embedded."""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from metabin_jax.data.records import EXTENSIONS, JUNK_PID, MARKET_NAME, SPLIT_FOLDERS, images
from metabin_jax.runtime.errors import UserError

LABELS = ("pid", "camid", "domain")
COLUMNS = ("path", *LABELS, "split")


class Listed(NamedTuple):
    """One image by its absolute path. `pid` and `domain` are "" and `camid` is -1 where they are not known."""

    path: str
    pid: str = ""
    camid: int = -1
    domain: str = ""


def list_images(path: str | Path) -> list[Listed]:
    """Every image below a folder, in a CSV list, or the one image that `path` is; opens none of them.

    A folder is searched at any depth, but for what is hidden, and sorted naturally: frame_9 before frame_10. A name
    that starts as in Market-1501, <pid>_c<camid>, gives labels: the pid as a number without leading zeros, and as
    domain the folder it lies in, or the one above query/, bounding_box_train/ or bounding_box_test/. Junk (pid -1) and
    the distractors of bounding_box_test/ (pid 0) are people not known.

    A CSV list, in UTF-8, has the column path and may have pid (any text), camid, domain and split (not used here).
    Relative paths are relative to its folder; the order is its own. A cell left empty is not known, nor is pid -1.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: there is no image, a column or cell of the CSV is wrong, or a path is not UTF-8.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if path.is_dir():
        found = [_labelled(image) for image in sorted(_below(path), key=_natural)]
        if not found:
            raise UserError(f"{path} holds no image ({', '.join(EXTENSIONS)}), at any depth.")
    elif not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a folder of images, a CSV list or an image.")
    elif path.suffix.lower() == ".csv":
        found = _read_list(path)
        if not found:
            raise UserError(f"{path} lists no image: add rows below the header.")
    else:
        found = [_labelled(path)]
    for image in found:
        try:
            image.path.encode()
        except UnicodeEncodeError:
            raise UserError(f"{image.path!a} is not a path in UTF-8: rename the file.") from None
    return found


def _below(root: Path) -> Iterator[Path]:
    seen = set()  # a link may lead back to a folder above it
    for folder, names, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        names[:] = [] if real in seen else sorted(name for name in names if not name.startswith("."))
        if real not in seen:
            seen.add(real)
            yield from images(Path(folder))


def _natural(path: Path) -> tuple:
    """Sorts the numbers in names as numbers, folder by folder."""
    parts = [re.split(r"(\d+)", part) for part in path.parts]
    return [[int(text) if text.isdecimal() else text for text in part] for part in parts], str(path)


def _labelled(path: Path) -> Listed:
    match = MARKET_NAME.match(path.name)
    if not match:
        return Listed(str(path))
    split = SPLIT_FOLDERS.get(path.parent.name)
    pid = int(match[1])
    is_known = pid > 0 or (pid == 0 and split != "gallery")
    domain = (path.parent.parent if split else path.parent).name
    return Listed(str(path), str(pid) if is_known else "", int(match[2]), domain)


def _read_list(path: Path) -> list[Listed]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            if "path" not in header or not set(header) <= set(COLUMNS) or len(set(header)) < len(header):
                raise UserError(
                    f"{path}: the header must have path, and may have {', '.join(COLUMNS[1:])}; it is"
                    f" {','.join(header)!r}."
                )
            return [_check_row(row, path, reader.line_num) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}).") from error


def _check_row(row: dict, path: Path, line: int) -> Listed:
    if None in row or None in row.values():
        raise UserError(f"{path}, line {line}: the number of cells differs from the header's.")
    row = dict.fromkeys(LABELS, "") | {column: cell.strip() for column, cell in row.items()}
    if not row["path"]:
        raise UserError(f"{path}, line {line}, column path: the cell is empty.")
    if row["camid"] and not row["camid"].isdecimal():
        raise UserError(f"{path}, line {line}, column camid: {row['camid']!r} is not a whole number.")
    pid = "" if row["pid"] == JUNK_PID else row["pid"]
    camid = int(row["camid"]) if row["camid"] else -1
    return Listed(os.path.abspath(path.parent / row["path"]), pid, camid, row["domain"])
