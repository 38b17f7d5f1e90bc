"""`metabin doctor`: what a folder or a CSV manifest holds, and what is wrong with it; or with what is installed."""

import collections
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metabin_jax.data.cache import upright
from metabin_jax.data.manifest import read_csv
from metabin_jax.data.records import Record, read_folder
from metabin_jax.data.sets import catalogue
from metabin_jax.evaluation.protocol import query_gallery
from metabin_jax.runtime.errors import UserError, few
from metabin_jax.runtime.progress import Progress
from metabin_jax.runtime.runlog import environment

# jaxlib -> what it is known to do wrong.
FAULTS = {
    "0.10.2": "on CPUs it computes some sums wrongly without a word (https://github.com/jax-ml/jax/issues/39103). The "
    "tests compare our training step with one that avoids them, and it is right; your own programs may not be. Newer "
    "versions need Python 3.12",
}


def installation() -> Iterator[str]:
    """Yields the lines of a report on the versions and devices that this package computes with."""
    found = environment()
    versions = found["versions"]
    yield f"Python {found['python']} on {found['platform']}"
    yield ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"devices: {', '.join(found['devices'])}"
    if fault := FAULTS.get(versions["jaxlib"]):
        yield f"warning: jaxlib {versions['jaxlib']} has a known fault: {fault}"


def examine(path: str | Path) -> Iterator[str]:
    """Yields the lines of a report on `path`: a published data set, a folder of domains, or a CSV manifest.

    The report tells which set it is and whether its counts are the published ones, what each split holds, which queries
    have no valid match and why, which images are broken, and which are copies of another. If the images of a set have
    to be extracted first, it tells only this.

    Raises:
      FileNotFoundError: path does not exist.
      UserError: it is none of the three, or has file names that cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name a data set, a folder of domains or a CSV manifest.")
    if catalogue.names_at(path):
        data_set, root = catalogue.find(path)
        if data_set.is_raw(root):
            yield f"{data_set.name} in {root}, as it was published: run metabin prepare, which extracts its images"
            return
        records = catalogue.read_set(data_set.name, root)
        yield f"{data_set.name} in {root}"
        beside = [child.name for child in path.iterdir() if child.is_dir() and not root.is_relative_to(child)]
        if root != path and (others := sorted(name for name in beside if not name.startswith("."))):
            yield f"  not looked at: {', '.join(others)} in {path}, as no set has such a name"
        try:
            catalogue.check_counts(data_set, records)
            yield f"  complete: {_phrase(data_set.published)}, as published"
        except UserError as error:
            yield f"  {error}"
    else:
        records = read_folder(path) if path.is_dir() else read_csv(path)
        yield f"{'folder of domains' if path.is_dir() else 'CSV manifest'} {path}"
    for domain in dict.fromkeys(record.domain for record in records):
        yield from _domain(domain, [record for record in records if record.domain == domain])
    yield from _files(records)


def _domain(domain: str, records: Sequence[Record]) -> Iterator[str]:
    counts = catalogue.counts(records)
    for split, numbers in counts["splits"].items():
        yield f"{domain}, {split}: {_phrase(numbers)}"
    if counts["distractors"]:
        yield f"{domain}: {counts['distractors']:,} gallery images of pid 0, which match nobody"
        if nobody := [record.path for record in records if record.pid == 0 and record.split == "query"]:
            yield f"  but {len(nobody):,} queries are of pid 0, so give that person another number: {few(nobody)}"
    try:
        split = query_gallery(records)
    except UserError as error:
        yield f"{domain} cannot be evaluated: {error}"
        return
    cameras: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for pid, camid in zip(split.gallery_pid.tolist(), split.gallery_camid.tolist(), strict=True):
        cameras[pid][camid] += 1
    in_gallery = set(split.gallery_row.tolist())
    alone, one_camera = [], []
    for row, camid in zip(split.query_row.tolist(), split.query_camid.tolist(), strict=True):
        query = records[row]
        if cameras[query.pid].total() == (row in in_gallery):
            alone.append(query.path)
        elif cameras[query.pid].keys() == {camid}:
            one_camera.append(query.path)
    queries = len(split.query_row)
    yield f"{domain}: {queries - len(alone) - len(one_camera):,} of {queries:,} queries have a valid match"
    if alone:
        yield f"  {len(alone):,} have none, as the gallery has no other image of their identity: {few(alone)}"
    if one_camera:
        yield (
            f"  {len(one_camera):,} have none, as only their own camera saw their identity: {few(one_camera)}; "
            "--config.eval.policy=ignore compares within a camera too"
        )


def _files(records: Sequence[Record]) -> Iterator[str]:
    """Broken images and files of the same content. Reads each file once."""
    of_path = {record.path: record for record in records}
    same: dict[str, list[str]] = collections.defaultdict(list)
    broken = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside the GIL
        looks = zip(of_path, pool.map(_look, of_path), strict=True)
        for path, (digest, error) in Progress("looking at images", len(of_path), looks):
            if error:
                broken.append(f"{path} ({error})")
            else:
                same[digest].append(path)
    yield f"{len(of_path):,} images, {len(broken):,} of them broken" + (f": {few(broken)}" if broken else "")
    twins = [paths for paths in same.values() if len(paths) > 1]
    if twins:
        yield f"{len(twins):,} images are there more than once, file by file the same: {few(map(' = '.join, twins))}"
    wrong = [paths for paths in twins if len({(of_path[path].domain, of_path[path].pid) for path in paths}) > 1]
    if wrong:
        named = few(map(" = ".join, wrong))
        yield f"{len(wrong):,} of these under different identities, so one label is wrong: {named}"


def _look(path: str) -> tuple[str, str]:
    """The digest of a file's content, and what is wrong with the image in it ("" if nothing)."""
    try:
        content = Path(path).read_bytes()
        upright(io.BytesIO(content))
    except Exception as error:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
        empty = os.path.isfile(path) and not os.path.getsize(path)
        return "", "empty" if empty else str(error).partition("<")[0].strip()
    return hashlib.sha256(content).hexdigest(), ""


def _phrase(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items())
