"""Words for messages."""

import difflib
from collections.abc import Iterable


def few(names: Iterable[str], most: int = 5) -> str:
    """The first `most` names, and "..." if there are more."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def meant(name: str, known: Iterable[str]) -> str:
    """What an unknown name was probably meant to be, or else all that it can be."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
