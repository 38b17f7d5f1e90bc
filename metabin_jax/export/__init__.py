"""Trained nets as files that run without this package."""

from metabin_jax.export.formats import FORMATS
from metabin_jax.export.run import Trial, export

__all__ = ["FORMATS", "Trial", "export"]
