"""The form of a computation that suits a platform, where one does not suit all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

_TRACED_FOR: ContextVar[str] = ContextVar("_TRACED_FOR", default="")


@contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """What is traced inside holds the forms of this platform ("cpu", "gpu", ...) alone, which takes much less time.

    A program traced so gives the right result anywhere, and is fast on its own platform. To be used within the function
    that is jitted, as JAX keeps what it has traced.
    """
    token = _TRACED_FOR.set(platform)
    try:
        yield
    finally:
        _TRACED_FOR.reset(token)


def by_platform(*operands: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """cpu(*operands) on a CPU, default(*operands) elsewhere: both are traced, unless `tracing_for` says which it is."""
    match _TRACED_FOR.get():
        case "":
            return jax.lax.platform_dependent(*operands, cpu=cpu, default=default)
        case "cpu":
            return cpu(*operands)
    return default(*operands)
