"""Files that are written completely or not at all, and JSON that is read strictly."""

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metabin_jax.runtime.devices import is_first
from metabin_jax.runtime.errors import UserError

MOST_BYTES = 2**28  # of a JSON file; the largest we know lists the 500,000 images of a prepared set in 2**26
DEEPEST = 32  # lists and objects within each other


def check_writable(path: str | Path) -> Path:
    """The path of a file to be written. Raises OSError if it cannot be written there."""
    path = Path(path).expanduser()
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.absolute().parent}.")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: it is a folder, or lies in one that is read-only.")
    return path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing, such as a full disk's, name no file by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to. When the context ends without an error, the file is renamed to `path`.

    The temporary file is new and its name is unique: no file of the user and no other writer has it, and no link is
    followed. Its permissions follow the umask.
    """
    temporary = path.with_name(f".metabin-{uuid.uuid4().hex}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, mend: str = "take it from a copy of the run, or train again") -> Any:
    """What a file of JSON holds, by `parse_json`. Raises UserError, which says `mend`, if it is damaged."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # a pipe or a device would never end
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
        return parse_json(content.decode())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {mend}") from error


def parse_json(text: str) -> Any:
    """What a text of JSON holds, strictly.

    Raises ValueError for what is not JSON, NaN, numbers beyond float64 and int64, names given twice, and lists and
    objects more than DEEPEST within each other.
    """
    try:
        content = json.loads(
            text, parse_constant=_no_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST):
        inside = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inside for value in values if isinstance(value, dict | list)]
    if level:
        raise ValueError("it is nested too deeply")
    return content


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def _int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text[:20]} is too large")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it has a name twice")
    return content


def write_json(path: Path, content: Any) -> None:
    """Like `write_text`. NaN is a ValueError, as JSON has no NaN and most readers refuse it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file completely or not at all. Process 0 alone writes."""
    if not is_first():
        return
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
