"""Checks of a config's fields, each named by its path ('data.height'); all raise UserError."""

import difflib
import math
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from metabin_jax.runtime.errors import UserError

KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    tuple: "a tuple, on the command line a,b",
}


def check_fields(config: ConfigDict, known: ConfigDict, path: str) -> None:
    """That `config` has the fields of `known`, each of its type."""
    for name in config:
        if name not in known:
            raise _unknown(name, known, path)
    for name, example in known.items():
        if name not in config:
            raise UserError(f"{path}.{name} is missing: start from metabin_jax.training.config.metabin()")
        value, field = config[name], f"{path}.{name}"
        if isinstance(example, ConfigDict) and isinstance(value, ConfigDict):
            check_fields(value, example, field)
        elif type(value) is not type(example) and not (type(example) is float and type(value) is int):
            kind = KINDS.get(type(example), "a group of fields")
            raise UserError(f"{field} must be {kind}; got {value!r}")
        elif type(value) is float and math.isinf(value):
            raise UserError(f"{field} must be finite; got {value}")


def _unknown(name: str, known: ConfigDict, path: str) -> UserError:
    close = difflib.get_close_matches(name, list(known), n=1)
    meant = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
    return UserError(f"{path} has no field {name!r}: {meant}")


def get(config: ConfigDict, field: str) -> Any:
    path = "config"
    for name in field.split("."):
        if not isinstance(config, ConfigDict):
            raise UserError(f"{path} is no group: it has no field {name!r}")
        if name not in config:
            raise _unknown(name, config, path)
        config, path = config[name], f"{path}.{name}"
    return config


def one_of(config: ConfigDict, field: str, allowed: Collection[str]) -> None:
    if get(config, field) not in allowed:
        raise UserError(f"config.{field} must be one of {', '.join(allowed)}; got {get(config, field)!r}")


def some_of(config: ConfigDict, field: str, allowed: Collection[str]) -> None:
    names = get(config, field)
    if not set(names) <= set(allowed) or len(set(names)) < len(names) or not names:
        raise UserError(f"config.{field} must name some of {', '.join(allowed)}, each once; got {names!r}")


def at_least(config: ConfigDict, field: str, low: float) -> None:
    if not get(config, field) >= low:  # so that nan fails too
        raise UserError(f"config.{field} must be {low} or more; got {get(config, field)}")
