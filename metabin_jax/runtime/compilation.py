"""Compiled programs: kept between runs, and the memory that making one leaves behind."""

import ctypes
import os
from typing import Any

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX is already told where."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/metabin_jax/xla"))


def compile_ahead(jitted: Any, *args: Any) -> Any:
    """Compiles a jitted function for these arguments without calling it, and returns the compiled function.

    Compiling, and loading a compiled program too, leaves hundreds of MiB that are free but still the process's, and
    would lie below everything that the first call needs. The C library is asked to give them back.
    """
    compiled = jitted.lower(*args).compile()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:  # glibc has it
        malloc_trim(0)
    return compiled
