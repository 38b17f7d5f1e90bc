"""Files that are written completely or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metabin_jax.runtime.devices import is_first
from metabin_jax.runtime.errors import UserError


def check_writable(path: str | Path) -> Path:
    """The path of a file to be written. Raises OSError if it cannot be written there."""
    path = Path(path).expanduser()
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.absolute().parent}.")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: it is a folder, or lies in one that is read-only.")
    return path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to. When the context ends without an error, the file is renamed to `path`.

    Its name is unique, as another process may write the same file.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Raises UserError if the file is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): take it from a copy of the run, or train again") from error


def write_json(path: Path, content: Any) -> None:
    """Like `write_text`. NaN is a ValueError, as JSON has no NaN and most readers refuse it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file completely or not at all. Process 0 alone writes."""
    if not is_first():
        return
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
