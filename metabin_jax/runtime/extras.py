"""Packages that only some commands need: extras of metabin_jax."""

import importlib.util

from metabin_jax.runtime.errors import UserError


def needs(what: str, extra: str, *modules: str, otherwise: str = "") -> None:
    """Raises UserError if a module that `what` imports is not installed; it says how to install metabin_jax[extra].

    otherwise: what to do besides, or instead of, installing the extra.
    """
    missing = [module.replace("_", "-") for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install 'metabin_jax[{extra}]'{otherwise}")
