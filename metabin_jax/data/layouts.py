"""What a tree of pictures means: its layout is recognised from its names, or given by a template.

A layout is a function (root, paths) -> a row for each of the paths that it understands. A path is that of an image
below the root, with "/"; a row is what it shows, or None for an image that is there twice.
"""

import collections
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from metabin_jax.data.manifest import csv_rows
from metabin_jax.data.records import EXTENSIONS, JUNK_PID, MARKET_NAME, SPLIT_FOLDERS, folders
from metabin_jax.runtime.errors import UserError, is_utf8

MOST_MISSED = 0.1  # the share of the images that a layout may not understand
FIELDS = ("domain", "pid", "camid", "split")
VERI_FOLDERS = {"image_train": "train", "image_query": "query", "image_test": "gallery"}
# Folders that mark a split, in Market-1501 and elsewhere.
SPLIT_OF = SPLIT_FOLDERS | {"train": "train", "query": "query", "gallery": "gallery", "test": "gallery"}
# Folders that look like identities and are none.
NO_IDENTITY = {*SPLIT_OF, "val", "images", "image", "imgs", "img", "data", "pictures", "photos", "crops"}
COPIES = "gt_bbox"  # Market-1501's folder of the same people again


def _called(*words: str) -> re.Pattern:
    """Names such as cam1, CAM_a and camNorth for the word cam, but not Camila: a number, sign or capital follows."""
    usual = "|".join(f"[{word[0].upper()}{word[0]}]{word[1:]}" for word in words)
    return re.compile(rf"(?:(?i:{'|'.join(words)})(?:[ _-]|(?=\d))|(?:{usual})(?=[A-Z]))(\w+)")


CAMERA, PERSON = _called("camera", "cam"), _called("person", "identity", "pid", "id")
# MSMT17 has the camera in the name, 0000/0000_000_01_0303morning_0008_0.jpg.
LIST_LINE = re.compile(
    r"(?P<name>(?:\S*/)?(?:\d+_\d+_(?P<named>\d+)_)?[^\s.]+)(?:\.\w+)?\s+(?P<pid>\d+)(?:\s+(?P<camid>\d+))?"
)
MARS_NAME = re.compile(r"(00-1|\d{4})C(\d+)T\d+F\d+")


class Row(NamedTuple):
    """What an image shows; "" for what is not known, pid "-1" for junk. split: as in `Record`."""

    pid: str
    camid: str
    domain: str
    split: str = "all"


class Indexed(NamedTuple):
    """layout: its name. rows: by path. left_out: reason -> paths of files that are in no row."""

    layout: str
    rows: dict[str, Row]
    left_out: dict[str, list[str]]


Layout = Callable[[Path, Sequence[str]], Mapping[str, Row | None]]


def index(root: str | Path, template: str = "") -> Indexed:
    """What the images below `root` show. template: see `by_template`; by default the layout is recognised.

    Raises FileNotFoundError, or UserError if there is no image, or if more than MOST_MISSED of them fit no layout.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: name the one that holds the pictures.")
    if root.name in ("", ".."):  # of "." and "..": a domain needs a name
        root = root.resolve()
    paths, left_out = walk(root)
    if not paths:
        raise UserError(f"{root} holds no image ({', '.join(EXTENSIONS)}), at any depth.")
    layouts = {f"template {template}": by_template(template)} if template else LAYOUTS
    for name, layout in layouts.items():
        found = layout(root, paths)
        missed = [path for path in paths if path not in found]
        if found and (template or len(missed) <= MOST_MISSED * len(paths)):
            return _rows_of(name, root, found, left_out | {"names of another layout": missed})
    raise UserError(
        f"{root} has no known layout, as in {paths[0]}: say what its parts are, such as "
        f"--template='{_suggested(paths[0])}' with {{pid}}, {{camid}}, {{domain}} and {{}} for the rest"
    )


def _rows_of(name: str, root: Path, found: Mapping[str, Row | None], left_out: dict[str, list[str]]) -> Indexed:
    """The rows sorted, without junk and second copies. Raises UserError if nothing is left."""
    copies = [path for path, row in found.items() if row is None]
    junk = [path for path, row in found.items() if row and row.pid == JUNK_PID]
    rows = {path: row for path, row in sorted(found.items()) if row and row.pid != JUNK_PID}
    if not rows:
        raise UserError(f"{root} holds only junk, images of the identity -1.")
    left_out = left_out | {f"the same people again, in {COPIES}": copies, "junk, of identity -1": junk}
    return Indexed(name, rows, {reason: paths for reason, paths in left_out.items() if paths})


def walk(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The images below root, and the other files by the reason why they are left out; hidden folders unread."""
    paths, left_out = [], collections.defaultdict[str, list[str]](list)
    for folder, files in folders(root, left_out["folders that cannot be read"]):
        for name in files:
            path = Path(folder, name).relative_to(root).as_posix()
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                left_out["hidden files"].append(path)
            elif not is_utf8(path):
                left_out["names that are not UTF-8"].append(path)
            elif suffix in EXTENSIONS:
                paths.append(path)
            else:
                left_out[f"files of the type {suffix or '(none)'}"].append(path)
    return paths, left_out


def by_template(template: str) -> Layout:
    """The layout of paths such as '{domain}/cam{camid}/{pid}_{}.jpg'.

    {pid}, {camid}, {domain} and {split} are texts without "/"; {} is any text without "/". The suffix may be left out.
    Raises UserError for other fields, a field twice, or a template without pid.
    """
    pattern, seen = "", []
    for literal, field in re.findall(r"([^{}]*)(\{\w*\}|$)", template):
        pattern += re.escape(literal)
        name = field.strip("{}")
        if name and (name not in FIELDS or name in seen):
            raise UserError(f"--template={template}: {{{name}}} is none of {', '.join(FIELDS)}, each once")
        seen.append(name)
        pattern += f"(?P<{name}>[^/]+?)" if name else "[^/]*?" if field else ""
    if "pid" not in seen or re.sub(r"\{\w*\}", "", template).strip() != re.sub(r"\{\w*\}|[{}]", "", template).strip():
        raise UserError(f"--template={template}: it must have {{pid}}, and each {{ its }}")
    matcher = re.compile(pattern if Path(template).suffix.lower() in EXTENSIONS else rf"{pattern}\.\w+")

    def layout(root: Path, paths: Sequence[str]) -> dict[str, Row]:
        matches = {path: match.groupdict() for path in paths if (match := matcher.fullmatch(path))}
        return {
            path: Row(found["pid"], found.get("camid", ""), found.get("domain", root.name), found.get("split", "all"))
            for path, found in matches.items()
        }

    return layout


def _suggested(path: str) -> str:
    """A template to start from: the top folder is the domain, that of the image, or else its name, the identity."""
    depth = path.count("/")
    above = ["{domain}", *["{}"] * (depth - 2)] if depth > 1 else []
    return "/".join([*above, "{pid}", "{}"]) if depth else "{pid}_{}"


def _wildlife(root: Path, paths: Sequence[str]) -> dict[str, Row]:
    """metadata.csv with path and identity, as wildlife-datasets write it."""
    if not (root / "metadata.csv").is_file():
        return {}
    known = set(paths)
    rows = [row for _, row in csv_rows(root / "metadata.csv", ("path", "pid"))]
    return {
        row["path"]: Row(row["pid"], row.get("camid", ""), row.get("domain") or root.name)
        for row in rows
        if row["path"] in known
    }


def _veri(root: Path, paths: Sequence[str]) -> dict[str, Row]:
    """VeRi-776: image_train, image_query, image_test with 0001_c001_00016450_0.jpg."""
    rows = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if (match := MARKET_NAME.match(name)) and folder in VERI_FOLDERS:
            rows[path] = Row(str(int(match[1])), str(int(match[2])), root.name, VERI_FOLDERS[folder])
    return rows


def _mars(root: Path, paths: Sequence[str]) -> dict[str, Row]:
    """MARS: bbox_train/0001/0001C1T0001F001.jpg; its queries are in a file of MATLAB, so test images are of "all"."""
    rows = {}
    for path in paths:
        if match := MARS_NAME.match(path.rpartition("/")[2]):
            split = "train" if "train" in path.split("/")[0] else "all"
            # Its distractors, 0000, are nobody; of split "all" 0 would be a person.
            pid = JUNK_PID if match[1] in ("00-1", "0000") else str(int(match[1]))
            rows[path] = Row(pid, match[2], root.name, split)
    return rows


def _lists(root: Path, paths: Sequence[str]) -> dict[str, Row]:
    """VehicleID, VERI-Wild and MSMT17: text files of lines `image identity [camera]`, the split in the file's name.

    An image in a folder is of that folder's identity: the lists number the identities of each split from 0.
    """
    by_name: dict[str, list[str]] = collections.defaultdict(list)
    for path in paths:
        parts = path.rsplit(".", 1)[0].split("/")
        for start in range(len(parts)):
            by_name["/".join(parts[start:])].append(path)
    rows: dict[str, Row] = {}
    for file in sorted(
        [*root.glob("*.txt"), *root.glob("train_test_split/*.txt")], key=lambda file: file.stat().st_size
    ):
        split = next((split for split in ("train", "query", "gallery") if split in file.name), "all")
        split = "train" if "val" in file.name else split
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            match = LIST_LINE.fullmatch(line.strip())
            found = by_name.get(match["name"], []) if match else []
            if len(found) > 1:  # MSMT17 has the same names in train/ and test/
                found = [path for path in found if ("train" in path.split("/")[0]) == (split == "train")]
            if match and len(found) == 1:
                pid = found[0].rpartition("/")[0] if "/" in match["name"] else str(int(match["pid"]))
                rows[found[0]] = Row(pid, match["camid"] or match["named"] or "", root.name, split)
    return rows


def _cameras_and_people(root: Path, paths: Sequence[str]) -> dict[str, Row]:
    """Folders such as cam01/person07, in either order, at any depth; another folder above them is the domain."""
    rows = {}
    for path in paths:
        *folders, _ = path.split("/")
        camera = next((m for folder in folders if (m := CAMERA.fullmatch(folder))), None)
        person = next((m for folder in folders if (m := PERSON.fullmatch(folder))), None)
        if camera and person:
            others = [folder for folder in folders if folder not in (camera[0], person[0])]
            rows[path] = Row(person[1], camera[1], others[0] if others else root.name)
    return rows


def _market(root: Path, paths: Sequence[str]) -> dict[str, Row | None]:
    """Names as in Market-1501; the domain is the folder, or the one above query/ and so on.

    Where folders mark splits, images in others beside them are not understood; those of COPIES are None.
    """
    matches = {path: match for path in paths if (match := MARKET_NAME.match(path.rpartition("/")[2]))}
    split_of, above_of = dict[str, str](), dict[str, tuple[str, ...]]()
    for path in matches:
        *folders, _ = path.split("/")
        split_of[path] = SPLIT_OF.get(folders[-1], "") if folders else ""
        above_of[path] = tuple(folders[:-1] if split_of[path] else folders)
    marked = {above_of[path] for path in matches if split_of[path]}
    domains = _domains({*above_of.values()}, root)
    rows: dict[str, Row | None] = {}
    for path, match in matches.items():
        split, above = split_of[path], above_of[path]
        if split or not any(above[:depth] in marked for depth in range(len(above) + 1)):
            pid = match[1] if match[1] == JUNK_PID else str(int(match[1]))
            rows[path] = Row(pid, str(int(match[2])), domains[above], split or "all")
        elif above[-1] == COPIES:
            rows[path] = None
    return rows


def _domains(places: set[tuple[str, ...]], root: Path) -> dict[tuple[str, ...], str]:
    """Names of folders, as short as they can be: the last part or, if two have the same one, all parts."""
    last = collections.Counter(place[-1] for place in places if place)
    return {place: (place[-1] if last[place[-1]] == 1 else "/".join(place)) if place else root.name for place in places}


def _folder_per_identity(root: Path, paths: Sequence[str]) -> dict[str, Row]:
    """identity/image or domain/identity/image, if every image is as deep; train/ and query/ may stand for a domain.

    So may a camera, cam1/identity/image: one person is then in the folders of several.
    """
    depths = {path.count("/") for path in paths}
    folders = {path.split("/")[-2] for path in paths if "/" in path}
    is_other = any(name.lower() in NO_IDENTITY or CAMERA.fullmatch(name) for name in folders)
    if depths not in ({1}, {2}) or len(folders) < 2 or is_other:
        return {}
    rows = {}
    for path in paths:
        *above, identity, _ = path.split("/")
        top = above[0] if above else ""
        split, camera = SPLIT_OF.get(top, ""), CAMERA.fullmatch(top)
        domain = root.name if not top or split or camera else top
        rows[path] = Row(identity, camera[1] if camera else "", domain, split or "all")
    return rows


LAYOUTS: dict[str, Layout] = {
    "wildlife-datasets (metadata.csv)": _wildlife,
    "VeRi-776": _veri,
    "MARS": _mars,
    "lists (VehicleID, VERI-Wild, MSMT17)": _lists,
    "folders of cameras and people": _cameras_and_people,
    "Market-1501 names": _market,
    "one folder per identity": _folder_per_identity,
}
