"""How a command is declared and parsed, and the options that several commands share, each described once."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from metabin_jax.runtime.errors import UserError, meant


class Once(argparse.Action):
    """Stores a value. Refuses a second one, which would silently replace the first."""

    given = False

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if self.given:
            raise argparse.ArgumentError(self, "is given twice")
        self.given = True
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Refuses repeated and unknown options in one sentence. Takes any --config.FIELD if FIELDS is an option."""

    is_group = False  # whether what follows is another command, with options of its own

    def __init__(self, **settings: Any):
        self.known: list[str] = []
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.register("action", None, Once)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        self.known += names
        return super().add_argument(*names, **settings)

    # argparse declares overloads, which a plain signature does not match.
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Leaves nothing unknown. Reports an unknown option before a missing one, of which it may be a misspelling."""
        args = sys.argv[1:] if args is None else args
        options = [name for name in self.known if name.startswith("--")]
        for name in dict.fromkeys(argument.partition("=")[0] for argument in args if not self.is_group):
            if not name.startswith("--") or name in ("--", *options):
                continue
            if not name.startswith("--config.") or FIELDS[0][0] not in options:
                self.error(f"there is no option {name!r}: {meant(name, options)}")
            self.add_argument(name)
        namespace, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return namespace, left

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def not_empty(text: str) -> str:
    """A type of options: an empty path would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


Option = tuple[tuple[str, ...], dict[str, Any]]  # what add_argument takes


class Command(NamedTuple):
    """What runs, returns the exit status (None: 0) and has the help as its docstring; and its options."""

    run: Callable[[argparse.Namespace], int | None]
    options: tuple[Option, ...]


def command(*options: Option) -> Callable[[Callable], Command]:
    return lambda run: Command(run, options)


def option(*names: str, **settings: Any) -> Option:
    return names, settings if "action" in settings else {"type": not_empty} | settings


def output(help: str, **settings: Any) -> tuple[Option, Option]:
    overwrite = option("--overwrite", action="store_true", help="replace the output if it exists")
    return option("--output", metavar="FILE", help=help, **settings), overwrite


CONFIG = option(
    "--config", required=True, metavar="NAME|FILE[:PRESET]",
    help="people, finetune, folder, demo, networks, metabin or benchmark, which come with metabin, or a Python file",
)  # fmt: skip
FIELDS = option(
    "--config.FIELD", metavar="VALUE",
    help="set a field of the config; a tuple is written a,b, as in --config.data.eval_domains=north,south",
)  # fmt: skip
DISTRIBUTED = option("--distributed", action="store_true", help="be one of several processes, see docs/devices.md")
MODEL = option(
    "--model", required=True, metavar="RUN|FILE",
    help="a workdir of metabin train, for its selected checkpoint, or a file of weights (.pth, .safetensors): see "
    "docs/weights.md",
)  # fmt: skip
MODEL_OF_IMAGES = option(
    "--model", metavar="RUN|FILE",
    help="as in metabin embed; needed for images, and checked against files of metabin embed",
)  # fmt: skip


def size(text: str) -> tuple[int, int]:
    """Height and width, written 256x128."""
    height, _, width = text.partition("x")
    if height.isdecimal() and width.isdecimal() and min(int(height), int(width)) >= 32:
        return int(height), int(width)
    raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH in pixels, such as 256x128, each 32 or more; not {text!r}")


SIZE = option(
    "--size", type=size, metavar="HxW", help="height and width of the images for a file of weights (default: 256x128)"
)
IMAGES = (
    "a folder of images (any layout and depth), a CSV list of them, or one image. A name as in Market-1501, "
    "<identity>_c<camera>..., gives pid, camid and, by its folder, domain. The CSV has the column path, and may have "
    "pid, camid and domain"
)
FEATURES = f"a file of metabin embed or metabin gallery, or {IMAGES}"


def check_output(options: argparse.Namespace, default: str | Path = "") -> Path:
    """The file to write. Raises UserError or OSError if it exists or cannot be written, before any work."""
    from metabin_jax.runtime.files import check_writable

    path = check_writable(options.output or default)
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} exists: give --overwrite to replace it, or another --output")
    return path


def check_table(options: argparse.Namespace, pages: bool = False) -> Path | None:
    """`check_output` of a table or, if there may be pages, an .html file; None without --output."""
    from metabin_jax.report import search_page
    from metabin_jax.retrieval import tables

    if not options.output:
        return None
    path = check_output(options)
    tables.check_suffix(path, [search_page.SUFFIX] if pages else [])
    search_page.check(path)
    return path
