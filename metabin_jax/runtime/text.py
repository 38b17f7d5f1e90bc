"""Words for messages."""

from collections.abc import Iterable


def few(names: Iterable[str], most: int = 5) -> str:
    """The first `most` names, and "..." if there are more."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
