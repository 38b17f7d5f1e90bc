"""Compiled programs: the cache that keeps them between runs, and compiling before the first call."""

import ctypes
import os
from typing import Any

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the folder that JAX was told or in the user's cache."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/metabin_jax/xla"))


def compile_ahead(jitted: Any, *args: Any) -> Any:
    """Compiles a jitted function for these arguments without calling it, and returns the compiled function.

    Compiling a program, or loading a compiled one, leaves hundreds of MiB that are free but still count as the
    process's. This asks the C library to return them before the first call needs memory of its own.
    """
    compiled = jitted.lower(*args).compile()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:  # glibc has it
        malloc_trim(0)
    return compiled
