"""Raw forms whose images are not plain files, made into ones that the readers know."""

from pathlib import Path


def ready(name: str, root: Path, into: Path) -> Path:
    """Where the plain files of the set `name` are: its `root`."""
    return root
