"""Trained nets as files that run without this package, each loaded again and compared before it gets its name.

A tool: only the command line imports it.
"""

from metabin_jax.export.formats import FORMATS
from metabin_jax.export.run import Trial, export

__all__ = ["FORMATS", "Trial", "export"]
