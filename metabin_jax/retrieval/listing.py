"""Images to embed: any layout, with labels if file names or a list give them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from metabin_jax.data.manifest import Files, csv_rows, numbered
from metabin_jax.data.records import EXTENSIONS, JUNK_PID, MARKET_NAME, SPLIT_FOLDERS, check_numbers, images
from metabin_jax.runtime.errors import UserError, is_utf8


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

    A CSV list has the column path and may have pid (any text), camid and domain, see `manifest.csv_rows`. Relative
    paths are relative to its folder, and its order is kept. An empty cell or a pid of -1 means not known.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      UserError: there is no image, a column or cell of the CSV is wrong, a number has too many digits, or a path is not
        UTF-8.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if path.is_dir():
        found = [_labelled(image) for image in sorted(_below(path), key=_natural)]
        if not found:
            raise UserError(f"{path} holds no image ({', '.join(EXTENSIONS)}), at any depth.")
    elif not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a folder of images, a CSV list or an image.")
    elif path.suffix.lower() == ".csv":
        rows, files = [row for _, row in csv_rows(path, ("path",))], Files()
        camids = numbered([(row.get("domain", ""), row.get("camid", "")) for row in rows])
        found = [
            Listed(
                os.path.abspath(files.find(path.parent, row["path"]) or path.parent / row["path"]),
                "" if row.get("pid") == JUNK_PID else row.get("pid", ""),
                camid,
                row.get("domain", ""),
            )
            for row, camid in zip(rows, camids, strict=True)
        ]
        if not found:
            raise UserError(f"{path} lists no image: add rows below the header.")
    else:
        found = [_labelled(path)]
    for image in found:
        if not is_utf8(image.path):
            raise UserError(f"{image.path!a} is not a path in UTF-8: rename the file.")
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
    check_numbers(str(path), *match.groups())
    split = SPLIT_FOLDERS.get(path.parent.name)
    pid = int(match[1])
    is_known = pid > 0 or (pid == 0 and split != "gallery")
    domain = (path.parent.parent if split else path.parent).name
    return Listed(str(path), str(pid) if is_known else "", int(match[2]), domain)
