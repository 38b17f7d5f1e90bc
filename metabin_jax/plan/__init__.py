"""What a training needs of a GPU, known from compiling it for one that need not be there."""

from metabin_jax.plan.run import find_target, measure, plan, sketch

__all__ = ["find_target", "measure", "plan", "sketch"]
