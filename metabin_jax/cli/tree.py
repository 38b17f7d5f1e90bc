"""The tree of parsers, and what happens when a command fails."""

import argparse
import importlib.metadata
import inspect
import sys

from metabin_jax.cli.options import Parser
from metabin_jax.cli.retrieval import calibrate, embed, search
from metabin_jax.cli.training import doctor, evaluate, export, plan, prepare, report, train
from metabin_jax.runtime.errors import Stopped, UserError, meant, printable

COMMANDS = (train, evaluate, report, embed, search, calibrate, export, doctor, prepare, plan)


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status. What the user can mend is one sentence and exit status 2."""
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
    try:
        return options.run(options) or 0
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
    for run, options in COMMANDS:
        what, _, details = (inspect.getdoc(run) or "").partition("\n\n")
        command = subparsers.add_parser(run.__name__, help=what, description=what, epilog=details)
        command.set_defaults(run=run)
        for names, settings in options:
            command.add_argument(*names, **settings)
    return parser, list(subparsers.choices)
