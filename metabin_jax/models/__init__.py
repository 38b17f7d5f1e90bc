"""Backbones and the re-identification head. `create` makes a model by name."""

from metabin_jax.models.reid import ReID, create

__all__ = ["ReID", "create"]
