"""Configs by name or file, and their fields as texts: what the command line and the studies are given."""

import os
import runpy
import traceback
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from metabin_jax.runtime.errors import UserError
from metabin_jax.training.config import override
from metabin_jax.training.trained import own_config

# The fields that an evaluation may change. The training fixed all others.
EVALUATION_FIELDS = ("data.", "eval.", "selection")


def load_config(name_or_file: str, fields: Mapping[str, str] | None = None) -> ConfigDict:
    """Returns get_config() of a config: 'demo', of those that come with the package, or a Python file.

    NAME:PRESET and FILE:PRESET call get_config(PRESET). A file has a separator in its path, or ends in .py. `fields`
    are set to their texts, {'data.path': 'pictures'}.

    Raises FileNotFoundError for the file, and UserError if there is no config of this name, get_config fails (with the
    line and its message), or a field is wrong.
    """
    name, _, preset = name_or_file.partition(":")
    file = _find(name)
    try:
        config = runpy.run_path(file)["get_config"](*[preset] if preset else [])
    except UserError:
        raise
    except Exception as error:
        lines = [f"line {at.lineno}" for at in traceback.extract_tb(error.__traceback__) if at.filename == file]
        where = ", ".join([file, *lines[-1:]])
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() must return a ConfigDict, as metabin_jax.training.config.metabin() does")
    for field, text in (fields or {}).items():
        override(config, field, text)
    return config


def _find(name: str) -> str:
    if os.sep in name or name.endswith(".py"):
        file = os.path.expanduser(name)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"the config file {file} does not exist")
        return file
    package = Path(__file__).parents[1]
    folder = package / "configs"  # of an installed wheel
    if not folder.is_dir():
        folder = package.parent / "configs"  # of a checkout
    files = {file.stem: str(file) for file in sorted(folder.glob("*.py"))}
    if name not in files:
        raise UserError(
            f"there is no config {name!r}: choose from {', '.join(files)}, or give a Python file, such as ./{name}.py"
        )
    return files[name]


def trained_config(model: str, fields: Mapping[str, str], size: tuple[int, int] | None = None) -> ConfigDict:
    """`own_config` of a run or a file of weights with other `fields`. Raises UserError for what the training fixed."""
    config = own_config(model, size)
    for field, text in fields.items():
        override(config, field, text)
        if not field.startswith(EVALUATION_FIELDS):
            raise UserError(f"config.{field} was fixed by the training: set config.data, .eval or .selection")
    return config
