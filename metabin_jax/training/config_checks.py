"""Finds the fields of a config by their paths ('data.height'), and checks their types; all raise UserError."""

import math
from typing import Any

from ml_collections import ConfigDict

from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.text import meant

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
            raise UserError(f"{path} has no field {name!r}: {meant(name, known)}")
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


def get(config: ConfigDict, field: str) -> Any:
    path = "config"
    for name in field.split("."):
        if not isinstance(config, ConfigDict):
            raise UserError(f"{path} is no group: it has no field {name!r}")
        if name not in config:
            raise UserError(f"{path} has no field {name!r}: {meant(name, config)}")
        config, path = config[name], f"{path}.{name}"
    return config
