"""The options that every study and figure takes, and how they end."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments import settings
from experiments.settings import Setting
from metabin_jax.runtime.errors import Stopped, UserError


def command_line(name: str, about: str) -> argparse.ArgumentParser:
    """The options that every study and figure takes."""
    parser = argparse.ArgumentParser(
        prog=f"experiments.{name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--data", choices=settings.NAMES, default="synthetic")
    parser.add_argument("--path", default="", help="the folder of domains, or the data_dir of `metabin prepare`")
    parser.add_argument("--init", default="", help="the file of weights to start from")
    parser.add_argument("--workdir", type=Path, help="default: runs/studies-DATA, with --smoke runs/studies-DATA-smoke")
    parser.add_argument("--targets", nargs="+", default=(), help="default: underpass, or every domain of the folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--jobs", type=int, help="how many processes run at once; default: 1, with --smoke 2")
    parser.add_argument("--smoke", action="store_true", help="only shows that it runs: a tiny net, two steps, one seed")
    # For --help only: `parse` takes such arguments out.
    parser.add_argument(
        "--config.FIELD", metavar="VALUE", default=argparse.SUPPRESS, help="a field of every row's config, as in train"
    )
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with defaults that depend on others, and the `setting` that they make. Raises as `Setting`."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args([each for each in given if not each.startswith("--config.")])
    overrides: dict[str, str] = {}
    for argument in (each for each in given if each.startswith("--config.")):
        field, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals or field in overrides:
            parser.error(f"{argument}: write --config.FIELD=VALUE, each field once")
        overrides[field] = text
    if args.targets and args.data == "paper":
        parser.error("--targets: the paper's sets are evaluated together, by one run")
    args.workdir = args.workdir or Path("runs", f"studies-{args.data}{'-smoke' * args.smoke}")
    args.seeds = args.seeds[:1] if args.smoke else args.seeds
    args.jobs = 1 + args.smoke if args.jobs is None else args.jobs
    if args.jobs < 1:
        parser.error("--jobs: at least one")
    args.setting = Setting(args.data, args.path, args.init, args.smoke, overrides)
    return args


@contextmanager
def in_one_sentence(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Ends the process with one sentence: with status 2 for an error that the user can mend, or when a signal asks."""
    try:
        yield
    except Stopped as stopped:
        parser.exit(stopped.status, f"{parser.prog}: {stopped}\n")
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
