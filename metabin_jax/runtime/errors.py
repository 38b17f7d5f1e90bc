"""The one kind of error that is the user's to mend, and words for its messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one sentence that names the file, field or value, says what is wrong and what to do.

    The command line prints it and exits with status 2. Any other ValueError is a fault of ours and keeps its traceback.
    """


def meant(name: str, known: Iterable[str]) -> str:
    """What an unknown name was probably meant to be, or else all that it can be."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
