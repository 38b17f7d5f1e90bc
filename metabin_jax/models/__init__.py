"""Backbones and the re-identification head: `create` makes a model by name, `load_torch` gives it PyTorch weights.

Everything here is a Flax module or acts on a model's variables. Nothing here knows a config, a data set or a learner.
"""

from metabin_jax.models.reid import ReID, create
from metabin_jax.models.weights.torch_weights import Report, load_torch

__all__ = ["ReID", "Report", "create", "load_torch"]
