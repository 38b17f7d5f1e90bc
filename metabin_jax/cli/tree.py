"""The tree of parsers, and what happens when a command fails."""

import argparse
import importlib.metadata
import inspect
import sys
from typing import Any

from metabin_jax.cli import gallery
from metabin_jax.cli.doctor import doctor
from metabin_jax.cli.index import index
from metabin_jax.cli.options import Command, Parser
from metabin_jax.cli.retrieval import calibrate, embed, search
from metabin_jax.cli.training import evaluate, export, plan, prepare, report, train
from metabin_jax.runtime import huge_pages
from metabin_jax.runtime.errors import Stopped, UserError, meant, printable

COMMANDS = (index, train, evaluate, report, embed, search, calibrate, export, doctor, prepare, plan)
GROUPS = {"gallery": ("Keep a gallery that grows in one file, and ask who is on a picture.", gallery.ACTIONS)}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status. What the user can mend is one sentence and exit status 2."""
    is_own_process = argv is None
    argv = sys.argv[1:] if argv is None else argv
    if argv in ([], ["help"]):
        argv = ["--help"]
    parser, commands = tree()
    if argv[0] not in (*commands, "-h", "--help", "--version"):
        print(f"metabin: there is no command {argv[0]!r}: {meant(argv[0], commands)}", file=sys.stderr)
        return 2
    try:
        options = parser.parse_args(argv)
    except SystemExit as done:  # by argparse, after --help, --version or a mistake
        return int(done.code or 0)
    if is_own_process and options.command == "train":
        huge_pages.start_again()
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print(f"metabin {options.command}: interrupted", file=sys.stderr)
        return 130
    except Stopped as stopped:
        print(f"metabin {options.command}: {stopped}", file=sys.stderr)
        return stopped.status
    except (UserError, OSError) as error:
        print(printable(f"metabin {options.command}: {error}"), file=sys.stderr)
        return 2


def tree() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of all commands, and their names."""
    parser = argparse.ArgumentParser(
        "metabin", description="Person re-identification that generalises to unseen domains.",
        epilog="metabin COMMAND --help lists the options of a command.", allow_abbrev=False,
    )  # fmt: skip
    version = f"metabin {importlib.metadata.version('metabin_jax')}"
    parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    _add(subparsers, COMMANDS)
    for name, (what, actions) in GROUPS.items():
        group = subparsers.add_parser(name, help=what, description=what)
        group.is_group = True
        below = group.add_subparsers(metavar="ACTION", title="actions", required=True, parser_class=Parser)
        _add(below, actions, f"{name} ")
    return parser, list(subparsers.choices)


def _add(subparsers: Any, commands: tuple[Command, ...], prefix: str = "") -> None:
    """A parser for each command; `options.command` is its name after the prefix."""
    for run, options in commands:
        what, _, details = (inspect.getdoc(run) or "").partition("\n\n")
        name = run.__name__.rstrip("_")
        command = subparsers.add_parser(name, help=what, description=what, epilog=details)
        command.set_defaults(run=run, command=prefix + name)
        for names, settings in options:
            command.add_argument(*names, **settings)
