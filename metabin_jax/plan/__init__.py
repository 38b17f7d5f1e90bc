"""The memory that a training needs on a GPU, found by compiling its real step for a card that need not be there.

A tool: only the command line imports it.
"""

from metabin_jax.plan.run import find_target, measure, plan, sketch

__all__ = ["find_target", "measure", "plan", "sketch"]
