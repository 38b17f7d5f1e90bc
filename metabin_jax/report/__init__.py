"""What people read about a run or a data set: `metabin report` writes one HTML page, `metabin doctor` examines images.

A tool: only the command line imports it.
"""

from metabin_jax.report.page import write_report

__all__ = ["write_report"]
