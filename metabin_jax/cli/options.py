"""Options of the command line, and the configs that they name and change."""

import argparse
import re
import runpy
import traceback
from pathlib import Path
from typing import NoReturn

from ml_collections import ConfigDict

from metabin_jax.runtime.errors import UserError

# What an evaluation may set; all else was fixed by the training.
EVALUATION_FIELDS = ("data.", "eval.", "selection")


class Parser(argparse.ArgumentParser):
    """One that raises ValueError instead of ending the process."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows the options")


def not_empty(text: str) -> str:
    """A type of options: an empty path would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def parse(arguments: list[str], *required: str) -> tuple[dict[str, str], dict[str, str]]:
    """Splits the arguments into the required options and the fields of the config, each as texts.

    Raises ValueError for what is neither, and for an option that is missing.
    """
    parser = Parser()
    for option in required:
        parser.add_argument(option, required=True, type=not_empty)
    options, left = parser.parse_known_args(arguments)
    fields = {}
    for argument in left:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument, re.DOTALL)
        if not match:
            names = ", ".join(f"{option}=..." for option in (*required, "--config.FIELD"))
            raise UserError(f"{argument!r} is not an option: they are {names}")
        fields[match[1]] = match[2]
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
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() must return a ConfigDict, as metabin_jax.config.metabin() does")
    return config


def override_all(config: ConfigDict, fields: dict[str, str]) -> None:
    """`config.override` of every field. Raises ValueError."""
    from metabin_jax.training.config import override

    for field, text in fields.items():
        override(config, field, text)


def trained_config(workdir: str, fields: dict[str, str]) -> ConfigDict:
    """The config of a trained workdir with other `fields`, which must be those of an evaluation."""
    from metabin_jax.training.workdir import read_config

    config = read_config(workdir)
    override_all(config, fields)
    for field in fields:
        if not field.startswith(EVALUATION_FIELDS):
            raise UserError(f"config.{field} was fixed by the training: set config.data, .eval or .selection")
    return config
