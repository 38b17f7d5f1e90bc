"""The command line: metabin train | evaluate."""

import json
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

USAGE = """usage: metabin COMMAND [options]

commands:
  train      train from a config, resuming by itself from a workdir that has a checkpoint
  evaluate   evaluate a trained workdir on the domains named in its config, or on others

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
  --config.eval.policy=ignore            or any other field."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; errors of the user's are one sentence and exit status 2."""
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
        run(rest)
    except (ValueError, FileNotFoundError, flags.Error) as error:
        print(f"metabin {command}: {error}", file=sys.stderr)
        return 2
    return 0


def train(arguments: list[str]) -> None:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    workdir = _parse(values, arguments)
    if values["config"].value is None:
        raise ValueError("--config=FILE is missing, as in --config=configs/demo.py")
    from metabin_jax.train import train

    _print_results(train(values["config"].value, workdir), workdir)


def evaluate(arguments: list[str]) -> None:
    workdirs = [a.split("=", 1)[1] for a in arguments if a.startswith("--workdir=")]
    if not workdirs:
        raise ValueError("--workdir=DIR is missing")
    path = Path(workdirs[-1]).expanduser() / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: --workdir must be one of metabin train")
    saved = json.loads(path.read_text(encoding="utf-8"))
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", ConfigDict(_lists_to_tuples(saved)), flag_values=values)
    workdir = _parse(values, arguments)
    from metabin_jax.train import evaluate

    _print_results(evaluate(values["config"].value, workdir), workdir)


COMMANDS = {"train": (train, TRAIN_HELP), "evaluate": (evaluate, EVALUATE_HELP)}


def _parse(values: flags.FlagValues, arguments: list[str]) -> str:
    """Fills the flags; returns the workdir."""
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    try:
        left = values(["metabin", *arguments])[1:]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{error.args[0] if error.args else error}") from error
    if left:
        raise ValueError(f"{left[0]!r} is not an option: options are written --name=value")
    if not values["workdir"].value:
        raise ValueError("--workdir=DIR is missing")
    return values["workdir"].value


def _lists_to_tuples(value):
    if isinstance(value, dict):
        return {name: _lists_to_tuples(inner) for name, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _print_results(results: dict, workdir: str) -> None:
    for domain, scores in results["targets"].items():
        percent = "  ".join(f"{name} {100 * scores[name]:.1f} %" for name in ("R-1", "R-5", "R-10", "mAP", "mINP"))
        print(f"{domain}: {percent}  ({scores['queries']} queries)")
        if scores["unmatched"]:
            named = ", ".join(scores["unmatched"][:3])
            print(f"  {len(scores['unmatched'])} queries have no valid match and do not count: {named}, ...")
    print(f"step {results['step']}; metrics, checkpoints and evaluation.json are in {workdir}")
