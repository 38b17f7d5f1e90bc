"""Images to embed: any layout, with labels if file names or a list give them."""

import os
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from metabin_jax.data.manifest import Files, csv_rows
from metabin_jax.data.records import EXTENSIONS, JUNK_PID, MARKET_NAME, SPLIT_FOLDERS, check_numbers, folders, images
from metabin_jax.runtime.devices import say
from metabin_jax.runtime.errors import UserError, counted, few, is_utf8


class Listed(NamedTuple):
    """One image by its absolute path. If they are not known, `pid` and `domain` are "" and `camid` is -1."""

    path: str
    pid: str = ""
    camid: int = -1
    domain: str = ""


def list_images(path: str | Path) -> list[Listed]:
    """Every image below a folder, in a CSV list, or the one image that `path` is; opens none of them.

    A folder is searched at any depth, except for hidden files and folders, and sorted naturally: frame_9 before
    frame_10. A name that starts as in Market-1501, <pid>_c<camid>, gives labels. The pid is a number without leading
    zeros. The domain is the folder of the image, or the one above query/, bounding_box_train/ or bounding_box_test/.
    The pid of junk (-1) and of distractors in bounding_box_test/ (0) counts as not known.

    A CSV list has the column path and may have pid (any text), camid, domain and split, see `manifest.csv_rows`.
    Relative paths are relative to its folder, and its order is kept. An empty cell, a pid of -1, and in a row of split
    "gallery" one of 0 mean not known. A camera with a name gets a number of ten digits, the same in every list.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      UserError: there is no image, a column or cell of the CSV is wrong, a number has too many digits, or a path is not
        UTF-8.
    """
    files, unread = Files(), list[str]()
    path = Path(files.absolute(os.path.expanduser(path)))
    if path.is_dir():
        below = [image for folder, _ in folders(path, unread) for image in images(folder)]
        if unread:
            say(f"{counted(len(unread), 'folder')} cannot be read and left out: {few(unread)}")
        found = [_labelled(image) for image in sorted(below, key=_natural)]
        if not found:
            raise UserError(f"{path} holds no image ({', '.join(EXTENSIONS)}), at any depth.")
    elif not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a folder of images, a CSV list or an image.")
    elif path.suffix.lower() == ".csv":
        rows = [row for _, row in csv_rows(path, ("path",))]
        found = [
            Listed(
                files.absolute(files.find(path.parent, row["path"]) or path.parent / row["path"]),
                "" if _is_nobody(row) else row.get("pid", ""),
                _camera(row.get("camid", "")),
                row.get("domain", ""),
            )
            for row in rows
        ]
        if not found:
            raise UserError(f"{path} lists no image: add rows below the header.")
    else:
        found = [_labelled(path)]
    for image in found:
        if not is_utf8(image.path):
            raise UserError(f"{image.path!a} is not a path in UTF-8: rename the file.")
    return found


def _is_nobody(row: dict[str, str]) -> bool:
    """Junk or, in a gallery, a distractor: as in `records.is_distractor`."""
    pid = row.get("pid", "")
    return pid == JUNK_PID or (row.get("split") == "gallery" and not pid.strip("0"))


def _camera(name: str) -> int:
    """The number of a camera, which must not depend on the other cameras of a list; -1 if it is not known."""
    if name in ("", "-1"):
        return -1
    return int(name) if name.isdecimal() else 2**32 + zlib.crc32(name.encode())


def _natural(path: Path) -> tuple:
    """Sorts the numbers in names as numbers, folder by folder."""
    parts = [re.split(r"(\d+)", part) for part in path.parts]
    return [[int(text) if text.isdecimal() else text for text in part] for part in parts], str(path)


def _labelled(path: Path) -> Listed:
    match = MARKET_NAME.match(path.name)
    if not match:
        return Listed(str(path))
    check_numbers(str(path), *match.groups())
    split = SPLIT_FOLDERS.get(path.parent.name)
    pid = int(match[1])
    is_known = pid > 0 or (pid == 0 and split != "gallery")
    domain = (path.parent.parent if split else path.parent).name
    return Listed(str(path), str(pid) if is_known else "", int(match[2]), domain)
