"""Trained nets as files that run without this package; each file is loaded again and compared with JAX first.

A tool: only the command line imports it, and it reads no config.
"""

from metabin_jax.export.formats import FORMATS
from metabin_jax.export.run import Trial, export

__all__ = ["FORMATS", "Trial", "export"]
