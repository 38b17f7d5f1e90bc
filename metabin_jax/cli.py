"""The command line: metabin train | evaluate | embed | search | calibrate | doctor."""

import argparse
import re
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from metabin_jax import commands

USAGE = """usage: metabin COMMAND [options]

commands:
  train      train from a config, resuming by itself from a workdir that has a checkpoint
  evaluate   evaluate a trained workdir on the domains named in its config, or on others
  embed      the features of a folder of images, or of a CSV list of them, into a file
  search     the most similar images of a gallery, with "same person" or "different" by a threshold
  calibrate  the threshold for a false accept rate, from labelled images
  doctor     say what a folder or CSV manifest of images holds, and what is wrong with it

metabin COMMAND --help lists the options of a command."""

TRAIN_HELP = """usage: metabin train --config=FILE[:PRESET] --workdir=DIR [--config.FIELD=VALUE ...]

  --config=configs/metabin.py            the paper's setting (PRESET: paper, the default, or official)
  --config=configs/folder.py             your own folder of domains
  --config=configs/demo.py               the embedded synthetic set
  --workdir=DIR                          checkpoints, metrics and config go here; a run found here goes on
  --config.data.path=DIR                 any field of the config, by its path
  --config.data.eval_domains="('a',)"    tuples as in Python

The fields and their sources stand in metabin_jax/config.py."""

EVALUATE_HELP = """usage: metabin evaluate --workdir=DIR [--config.FIELD=VALUE ...]

  --workdir=DIR                          a workdir of `metabin train`; its config is taken as it is, except for
  --config.data.eval_domains="('a',)"    other domains,
  --config.data.path=DIR                 images elsewhere,
  --config.eval.policy=ignore            or any other field of data, eval and selection"""

DOCTOR_HELP = """usage: metabin doctor PATH

  PATH    a published data set as it was unpacked, a folder of domains, or a CSV manifest

Prints which set it is and its counts against the published ones, what each split holds, the queries without a valid
match and why, and broken and duplicate images."""

# What an evaluation may set; all else was fixed by the training.
EVALUATION_FIELDS = ("data.", "eval.", "selection")


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status; errors of the user's are one sentence and exit status 2."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        print(f"metabin: there is no command {command!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    run, usage = COMMANDS[command]
    if {"-h", "--help"} & set(rest):
        print(usage)
        return 0
    try:
        return run(rest) or 0
    except (ValueError, OSError) as error:
        if not _is_the_users(error):
            raise
        print(f"metabin {command}: {error}", file=sys.stderr)
        return 2


def _is_the_users(error: Exception) -> bool:
    """Our own errors say what to do, and those of the system name a file; a library's ValueError is a bug of ours."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, OSError) or frame.f_globals["__name__"].startswith("metabin_jax.")


def train(arguments: list[str]) -> None:
    options, fields = _parse(arguments, "--config", "--workdir")
    config = load_config(options["config"])
    _override(config, fields)
    from metabin_jax.train import train

    _print_results(train(config, options["workdir"]), options["workdir"])


def evaluate(arguments: list[str]) -> None:
    options, fields = _parse(arguments, "--workdir")
    from metabin_jax.runlog import read_config

    config = read_config(options["workdir"])
    _override(config, fields)
    for field in fields:
        if not field.startswith(EVALUATION_FIELDS):
            raise ValueError(f"config.{field} was fixed by the training: set config.data, .eval or .selection")
    from metabin_jax.train import evaluate

    _print_results(evaluate(config, options["workdir"]), options["workdir"])


def doctor(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ValueError("give one PATH: a data set, a folder of domains or a CSV manifest")
    from metabin_jax.doctor import examine

    for line in examine(arguments[0]):
        print(line)


COMMANDS: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
    "train": (train, TRAIN_HELP),
    "evaluate": (evaluate, EVALUATE_HELP),
    "embed": (commands.embed, commands.EMBED_HELP),
    "search": (commands.search, commands.SEARCH_HELP),
    "calibrate": (commands.calibrate, commands.CALIBRATE_HELP),
    "doctor": (doctor, DOCTOR_HELP),
}


def _parse(arguments: list[str], *required: str) -> tuple[dict[str, str], dict[str, str]]:
    """Splits the arguments into the required options and the fields of the config, each as texts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in required:
        parser.add_argument(option, default="")
    try:
        options, left = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error.argument_name}: {error.message}") from None
    fields = {}
    for argument in left:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument, re.DOTALL)
        if not match:
            names = ", ".join(f"{option}=..." for option in (*required, "--config.FIELD"))
            raise ValueError(f"{argument!r} is not an option: they are {names}")
        fields[match[1]] = match[2]
    for option in required:
        if not getattr(options, option.removeprefix("--")):
            raise ValueError(f"{option} is missing: metabin COMMAND --help shows how it is given")
    return vars(options), fields


def load_config(file_and_preset: str) -> ConfigDict:
    """What get_config() of a Python file returns; FILE:PRESET gives it an argument.

    Raises FileNotFoundError, or ValueError for whatever goes wrong inside of the file, with its line.
    """
    file, _, preset = file_and_preset.partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"the config file {file} does not exist")
    try:
        config = runpy.run_path(file)["get_config"](*[preset] if preset else [])
    except Exception as error:
        lines = [
            f"line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
        ]
        where = ", ".join([file, *lines[-1:]])
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{file}: get_config() must return a ConfigDict, as metabin_jax.config.metabin() does")
    return config


def _override(config: ConfigDict, fields: dict[str, str]) -> None:
    from metabin_jax.config import override

    for field, text in fields.items():
        override(config, field, text)


def _print_results(results: dict, workdir: str) -> None:
    for domain, scores in results["targets"].items():
        percent = "  ".join(f"{name} {100 * scores[name]:.1f} %" for name in ("R-1", "R-5", "R-10", "mAP", "mINP"))
        print(f"{domain}: {percent}  ({scores['queries']} queries)")
        unmatched = scores["unmatched"]
        if unmatched:
            named = ", ".join(unmatched[:3]) + (", ..." if len(unmatched) > 3 else "")
            print(f"  {len(unmatched)} queries have no valid match and do not count: {named}")
    print(f"step {results['step']}; metrics, checkpoints and evaluation.json are in {workdir}")
