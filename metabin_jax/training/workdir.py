"""The workdir of a run: its config, which must not change when the run resumes, and the record of its starts."""

import ast
import contextlib
import fcntl
import itertools
import json
import os
import socket
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from metabin_jax.data.records import Record
from metabin_jax.runtime.devices import is_first
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import read_json, write_json, write_text
from metabin_jax.runtime.runlog import environment, read_rows
from metabin_jax.training.checkpoint import has_checkpoint

# What may change when a run resumes.
RESUMABLE = (
    "epochs", "log_every", "keep", "checkpoint_minutes", "debug_nans", "eval.", "data.path", "data.cache_dir",
    "data.resident", "steps_per_dispatch",
)  # fmt: skip
SELECTING = ("eval.policy", "eval.metric")  # may not, where the checkpoint is chosen by a score with them
READERS = 16  # threads that wait for files, on a network or a disk


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError if `workdir` is a file or holds a run of another config."""
    if workdir.is_file():
        raise UserError(f"{workdir} is a file: --workdir must name a folder, new or of the same run")
    path = workdir / "config.json"
    if not path.exists():
        if has_checkpoint(workdir):
            raise UserError(f"{workdir} has checkpoints but no config.json: put it back, or choose another --workdir")
        return
    before, now = (flatten_dict(fields, sep=".") for fields in (read_json(path), settings(config)))
    for field in sorted(before.keys() | now.keys()):
        old, new = before.get(field), now.get(field)
        may_change = field.startswith(RESUMABLE) and not (config.selection == "source_val" and field in SELECTING)
        if old != new and not may_change:
            raise UserError(
                f"{workdir} holds a run with config.{field}={old!r}, not {new!r}: choose another workdir, "
                "or the old value"
            )


def check_records(config: ConfigDict, records: Sequence[Record], workdir: Path) -> None:
    """Raises UserError if the run in `workdir` trained on other records, and names the first that differs."""
    path = workdir / "records.txt"
    if not path.exists():
        return
    before, now = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), _lines(config, records)
    for old, new in itertools.zip_longest(before, now):
        if old != new:
            raise UserError(
                f"{workdir} was trained on other images: its record {old!r} is now {new!r} (domain, path, identity, "
                "camera, split, bytes, CRC-32). Put the images back, or choose another --workdir"
            )


def check_progress(workdir: Path, steps_per_epoch: int) -> None:
    """Raises UserError if the run got beyond its first checkpoint, and has none."""
    logged = max((row["step"] for row in read_rows(workdir / "metrics.jsonl")), default=0)
    if logged > steps_per_epoch and not has_checkpoint(workdir):
        raise UserError(
            f"{workdir} has logged {logged:.0f} steps, but its checkpoints are gone: put them back, or remove "
            "metrics.jsonl to start again"
        )


def _lines(config: ConfigDict, records: Sequence[Record]) -> list[str]:
    """A line for each record, with its path as seen from data.path, so that a folder may move."""
    root = Path(config.data.path)
    root = root if root.is_dir() else root.parent

    def line(record: Record) -> str:
        path = Path(record.path)
        content = path.read_bytes() if config.data.path and path.is_file() else b""
        seen = os.path.relpath(path, root) if config.data.path else record.path
        person = record.domain, seen, record.identity, record.camid, record.split
        labels = *person, len(content), f"{zlib.crc32(content):08x}"
        return repr("\t".join(map(str, labels)))[1:-1]  # no name breaks a line

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(line, records))


def _unquoted(line: str) -> str:
    """A line of records.txt as it was before `repr`, which takes the quotes that need fewer escapes."""
    try:
        return ast.literal_eval(f"'{line}'")
    except SyntaxError:
        return ast.literal_eval(f'"{line}"')


def trained_on(workdir: Path, images: Iterable[tuple[str, str, str]]) -> dict[str, list[str]]:
    """Domain -> its identities that the run in `workdir` was trained on, by images (path, domain, pid).

    An identity was trained on if the training had it in a domain of this name, or had the very file under any name.
    """
    path, labels, contents = workdir / "records.txt", set(), set()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        domain, *_, pid, _, _, size, checksum = _unquoted(line).split("\t")  # a path may have one too
        labels.add((domain, pid))
        contents.add((int(size), checksum))
    sizes = {size for size, _ in contents} - {0}

    def is_known(image: tuple[str, str, str]) -> bool:
        file = Path(image[0])
        return image[1:] in labels or (
            file.is_file()
            and (size := file.stat().st_size) in sizes
            and (size, f"{zlib.crc32(file.read_bytes()):08x}") in contents
        )

    found: dict[str, dict[str, None]] = {}
    for image in images:
        if image[2] not in found.get(image[1], ()) and is_known(image):
            found.setdefault(image[1], {})[image[2]] = None
    return {domain: list(pids) for domain, pids in found.items()}


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Raises UserError if another process trains in `workdir`; of a distributed run only process 0 is asked."""
    if not is_first():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{workdir} is in use: {file.read().strip() or 'another process'} trains there. Wait for it, or choose "
                "another --workdir"
            ) from None
        file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        yield


def describe_run(config: ConfigDict, records: Sequence[Record], workdir: Path) -> None:
    """Writes config.json and records.txt, and adds this start of the run to environment.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", settings(config))
    if not (path := workdir / "records.txt").exists():  # otherwise `check_records` found it equal
        write_text(path, "".join(f"{line}\n" for line in _lines(config, records)))
    path = workdir / "environment.json"
    starts = read_json(path) if path.exists() else []
    write_json(path, [*starts, environment()])


def read_config(workdir: str | Path) -> ConfigDict:
    """The config of the run in `workdir`. Raises FileNotFoundError if there is no run."""
    path = Path(workdir).expanduser() / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a workdir of metabin train")
    fields = flatten_dict(read_json(path)).items()
    return ConfigDict(unflatten_dict({name: tuple(v) if isinstance(v, list) else v for name, v in fields}))


def settings(config: ConfigDict) -> dict:
    """The config as JSON: dicts and lists."""
    return json.loads(config.to_json())
