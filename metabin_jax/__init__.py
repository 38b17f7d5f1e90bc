"""MetaBIN (Choi et al., CVPR 2021) in JAX and Flax.

The method itself is four modules at this level: `algorithm`, `norm`, `losses` and `schedules`, with the `learner` that
they share. Everything else lives in a room, whose `__init__` says what belongs there and what does not.
"""

from typing import Any

__all__ = ["Encoder"]


def __getattr__(name: str) -> Any:
    """Imports late: `metabin --help` and the method alone need none of it."""
    if name in __all__:
        from metabin_jax.retrieval.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
