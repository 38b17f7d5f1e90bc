"""Records, one per image: where it is and what it shows; and how a folder of domains is read."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metabin_jax.runtime.errors import UserError

SPLITS = ("train", "query", "gallery", "all")
# Domain folder -> split; "." is the domain folder itself.
SPLIT_FOLDERS = {".": "all", "bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
MOST_DIGITS = 18  # of a number: int64 holds them all
JUNK_PID = "-1"  # Market-1501's mark for badly detected boxes
MARKET_NAME = re.compile(rf"({JUNK_PID}|\d+)_c(\d+)")
MARKET_PATH = rf"(?:({'|'.join(list(SPLIT_FOLDERS)[1:])})/)?{MARKET_NAME.pattern}"  # below the domain


class Record(NamedTuple):
    """One image. `pid` is unique within its domain only; `camid` is -1 if unknown; `split` is one of SPLITS.

    name: what a manifest calls the identity, "" if that is `pid` itself.
    """

    path: str
    pid: int
    camid: int
    domain: str
    split: str
    name: str = ""

    @property
    def identity(self) -> str:
        """What the data call the person."""
        return self.name or str(self.pid)


def is_distractor(record: Record) -> bool:
    """Whether the image matches no query: in a gallery, pid 0 marks a distractor, as in Market-1501 and GRID."""
    return record.pid == 0 and record.split == "gallery"


def read_folder(root: str | Path, domains: Sequence[str] = ()) -> list[Record]:
    """Reads root/<domain>/, each domain in Market-1501 naming.

    A domain holds images itself (split "all"), or in bounding_box_train, query and bounding_box_test (splits
    "train", "query", "gallery"), or both. A file name starts with <pid>_c<camid>. Junk (pid -1) is left out,
    pid 0 (see `is_distractor`) is kept. Hidden files and files of other types are ignored.
    Records come domain by domain, then in the order of the folders above, then sorted by file name.

    domains: which domains to read, in this order; all of them, sorted by name, if empty.

    Raises FileNotFoundError if root is not a folder or a chosen domain is not in it, and UserError if root is itself a
    domain, a domain has no image, or a file name does not match.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"Data folder {root} does not exist or is not a folder.")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if next(images(root), None) or set(names) & set(SPLIT_FOLDERS):
        raise UserError(
            f"{root} holds the images of one domain, but a folder of domains is expected: point to its parent folder"
            f" and choose this domain by name, as in --config.data.path={shlex.quote(str(root.absolute().parent))}"
            f" --config.data.train_domains={shlex.quote(root.absolute().name)} --config.data.domain_by=camera."
        )
    if not names:
        raise UserError(f"{root} holds no domain: give the images of each domain a sub-folder of their own.")
    if missing := [domain for domain in domains if domain not in names]:
        raise FileNotFoundError(f"Domain {missing[0]!r} is not in {root}, which holds: {', '.join(names)}.")
    if len(set(domains)) < len(domains):
        raise ValueError(f"The list of domains names one twice: {', '.join(domains)}.")
    return [record for domain in domains or names for record in read_domain(root / domain, domain)]


def folders(root: Path, unread: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below root, itself first, with the sorted names of the files in it; hidden folders are left out.

    Each folder is entered once, by its own name rather than by that of a link to it. Folders that cannot be read are
    added to `unread`.
    """
    todo, seen = [str(root)], set()
    while todo:
        for folder, names, files in os.walk(todo.pop(0), onerror=lambda error: unread.append(str(error.filename))):
            names[:] = sorted(name for name in names if not name.startswith("."))
            if (real := os.path.realpath(folder)) in seen:
                names.clear()
                continue
            seen.add(real)
            todo += [path for name in names if os.path.islink(path := os.path.join(folder, name))]
            yield Path(folder), sorted(files)


def images(folder: Path) -> Iterator[Path]:
    """The image files in `folder`, unsorted, without hidden ones."""
    for path in folder.iterdir():
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file():
            yield path


def match_names(root: Path, folders: Iterable[str], name: str, form: str) -> list[tuple[Path, re.Match]]:
    """Every image in those `folders` below root that exist, with the match of its path below root (written with "/").

    Sorted by file name within a folder. form: describes a right name, for the error.
    Raises UserError if the start of a path does not match, or a number in it has too many digits.
    """
    here = [root / folder for folder in folders if (root / folder).is_dir()]
    paths = [path for folder in here for path in sorted(images(folder), key=lambda p: p.name)]
    matches = [(path, re.match(name, path.relative_to(root).as_posix())) for path in paths]
    if wrong := [path for path, match in matches if match is None]:
        raise name_error(wrong, form)
    found = [(path, match) for path, match in matches if match]
    for path, match in found:
        check_numbers(str(path), *match.groups(""))
    return found


def check_numbers(where: str, *texts: str) -> None:
    """Raises UserError for a number, among these texts, that int64 cannot hold."""
    for text in texts:
        if len(text) > MOST_DIGITS and text.isdecimal():
            raise UserError(f"{where}: {text} has more than {MOST_DIGITS} digits: number identities and cameras anew.")


def name_error(wrong: Sequence[Path], form: str) -> UserError:
    """One sentence about wrong file names: names the first, and says how many there are."""
    how_many = f" ({len(wrong)} such names in all)" if len(wrong) > 1 else ""
    return UserError(
        f"{wrong[0]}: the file name does not start with {form}{how_many}:"
        " rename it, or let metabin index make a CSV manifest of the images."
    )


def read_domain(folder: Path, domain: str) -> list[Record]:
    """The records of one domain. Reads and raises as `read_folder` does."""
    form = "<pid>_c<camera> as in 0002_c1s1_000451.jpg"
    records = [
        Record(str(path), int(match[2]), int(match[3]), domain, SPLIT_FOLDERS[match[1] or "."])
        for path, match in match_names(folder, SPLIT_FOLDERS, MARKET_PATH, form)
        if match[2] != JUNK_PID
    ]
    if not records:
        below = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXTENSIONS]
        deeper = next((path for path in below if path.parent.as_posix() not in SPLIT_FOLDERS), None)
        raise UserError(
            f"{folder} has another layout than <pid>_c<camera>..., as in {deeper}: let"
            f" metabin index {shlex.quote(str(folder.parent))} make a CSV manifest, and give that instead."
            if deeper
            else f"Domain folder {folder} holds no image ({', '.join(EXTENSIONS)}), neither itself nor in"
            f" {', '.join(list(SPLIT_FOLDERS)[1:])}: fill it, remove it, or leave this domain out."
        )
    return records
