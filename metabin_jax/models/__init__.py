"""Backbones and the re-identification head. `create` makes a model by name, `load_torch` gives it PyTorch weights."""

from metabin_jax.models.reid import ReID, create
from metabin_jax.models.torch_weights import Report, load_torch

__all__ = ["ReID", "Report", "create", "load_torch"]
