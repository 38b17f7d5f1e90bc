"""The one kind of error that is the user's to mend, and words for its messages."""

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one sentence that names the file, field or value, says what is wrong and what to do.

    The command line prints it and exits with status 2. Any other ValueError is a fault of ours and keeps its traceback.
    """


def few(names: Iterable[str], most: int = 5) -> str:
    """The first `most` names, and "..." if there are more."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
