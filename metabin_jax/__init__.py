"""MetaBIN (Choi et al., CVPR 2021) in JAX and Flax.

The method itself is four modules at this level: `algorithm`, `norm`, `losses` and `schedules`, with the `learner` that
they share. Everything else lives in a room, whose `__init__` says what belongs there and what does not.
"""

from typing import Any

__all__ = ["Encoder", "__version__"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    """Imports late: `metabin --help` and the method alone need none of it."""
    if name == "Encoder":
        from metabin_jax.retrieval.encoder import Encoder

        return Encoder
    if name == "__version__":
        from importlib.metadata import version

        return version("metabin_jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
