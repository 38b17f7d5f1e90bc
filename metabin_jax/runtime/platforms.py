"""Computations that have one form for CPUs and another for other platforms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

_TRACED_FOR: ContextVar[str] = ContextVar("_TRACED_FOR", default="")


@contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Traces only the forms of this platform ("cpu", "gpu", ...), which takes much less time.

    The program gives the right result on every platform and is fast on its own. Enter this inside the jitted function,
    because JAX caches what it has traced.
    """
    token = _TRACED_FOR.set(platform)
    try:
        yield
    finally:
        _TRACED_FOR.reset(token)


def by_platform(*operands: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """cpu(*operands) on a CPU, default(*operands) elsewhere. Both are traced, unless `tracing_for` names a platform."""
    match _TRACED_FOR.get():
        case "":
            return jax.lax.platform_dependent(*operands, cpu=cpu, default=default)
        case "cpu":
            return cpu(*operands)
    return default(*operands)
