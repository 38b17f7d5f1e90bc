"""Runs a training step and writes every number of it to the file that is named. Batches have odd numbers of rows.

Run by `test_fusions` with and without XLA's YNNPACK fusions on CPUs.
"""

import sys

import jax
import numpy as np
import optax
from tiny_run import PixelNet

from metabin_jax.algorithm import MetaBIN
from metabin_jax.learner import Batch


def batch(seed: int, domains: int, people: int, images: int) -> Batch:
    """`people` of every domain, `images` of each, at 256 x 128."""
    rng = np.random.default_rng(seed)
    number = domains * people * images
    pid = np.arange(number) // images
    image = rng.normal(size=(number, 256, 128, 3)).astype(np.float32)
    return Batch(image, pid, pid // people)


def main(file: str) -> None:
    learner = MetaBIN(model=PixelNet(501), optimizer=optax.sgd(0.01, momentum=0.9), beta=0.1, first_order=False)
    xb, xs, xt = batch(0, 5, 3, 3), batch(1, 3, 3, 3), batch(2, 2, 3, 3)
    state = jax.jit(learner.init)(jax.random.key(0), xb.image[:1])
    leaves = jax.tree_util.tree_leaves_with_path(jax.jit(learner.train_step)(state, xb, xs, xt))
    np.savez(file, **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


if __name__ == "__main__":
    main(sys.argv[1])
