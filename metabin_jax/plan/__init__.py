"""The memory that a training needs on a GPU, found by compiling its real step; no GPU is needed.

A tool: only the command line imports it, and it reads no config.
"""

from metabin_jax.plan.run import find_target, measure, plan

__all__ = ["find_target", "measure", "plan"]
