"""The one kind of error that is the user's to mend, and words for its messages."""

import difflib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Bad input: one sentence that names the file, field or value, says what is wrong and what to do.

    The command line prints it and exits with status 2. Any other ValueError is a fault of ours and keeps its traceback.
    """


class Stopped(Exception):
    """A signal ended the work in good order. status: of the process, 128 + the signal's number."""

    def __init__(self, number: int, words: str):
        super().__init__(number, words)  # what a process sends to another
        self.status, self._words = 128 + number, words

    def __str__(self) -> str:
        return self._words


def needs(what: str, extra: str, *modules: str, otherwise: str = "") -> None:
    """Raises UserError if a module that `what` imports is not installed; it gives the command that installs the extra.

    otherwise: what to do besides, or instead of, installing the extra.
    """
    missing = [module.replace("_", "-") for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        root = Path(__file__).parents[2]
        package = f"-e '{root}[{extra}]'" if (root / "pyproject.toml").is_file() else f"'metabin_jax[{extra}]'"
        command = f"{sys.executable} -m pip install {package}"
        raise UserError(f"{what} needs {' and '.join(missing)}: {command}{otherwise}")


def few(names: Iterable[str], most: int = 5) -> str:
    """The first `most` names, and "..." if there are more."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def counted(number: int, singular: str, plural: str = "") -> str:
    """ "1 image", "2,000 images"; plural: of a noun that takes more than an s."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def meant(name: str, known: Iterable[str]) -> str:
    """What an unknown name was probably meant to be, or else all that it can be."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"


def printable(text: str) -> str:
    """The text with what a terminal would obey or cannot show, as file names may have it, written as \\x1b."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else _escaped(letter) for letter in text)


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its text, for a sentence: libraries write whole pages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:150]}" if lines else type(error).__name__


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold the text: the name of a file may have other bytes, which Python keeps as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
