"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def check_writable(path: str | Path) -> Path:
    """The path of a file to be written. Raises OSError where none can be."""
    path = Path(path).expanduser()
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.absolute().parent}.")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: it is a folder, or lies in one that is read-only.")
    return path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to; what is there takes the name `path` when the context ends without an error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
