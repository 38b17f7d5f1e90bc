"""A small smooth net and batches for tests of Algorithm 1, in float64: call everything under jax.enable_x64.

Compilation takes nearly all the time of these tests and grows with the net.
"""

import jax
import jax.numpy as jnp
import numpy as np

from metabin_jax import models
from metabin_jax.algorithm import Batch, TrainState
from metabin_jax.models.mobilenetv2 import Stage

CLASSES = 10
IMAGE_HWC = (16, 8, 3)


def small_net(norm="metabin", blocks=0):
    """Stem, inverted residuals and head; finite differences need a smooth activation."""
    return models.create("tiny", CLASSES, norm, stages=(Stage(1, 4, 1, 1),) * blocks, stem=4, head=8, act=jnp.tanh)


def draw_batch(domains, seed):
    """Two identities of each domain, two images each; identity and domain both show in the pixels."""
    rng = np.random.default_rng([seed])
    domain = np.repeat(np.asarray(domains, np.int32), 4)
    pid = 2 * domain + np.tile(np.array([0, 0, 1, 1], np.int32), len(domains))
    looks = np.random.default_rng([1]).normal(size=(CLASSES, *IMAGE_HWC))
    image = looks[pid] * (1 + domain[:, None, None, None] / 4) + rng.normal(size=(len(pid), *IMAGE_HWC))
    return Batch(jnp.asarray(image), jnp.asarray(pid), jnp.asarray(domain))


def start_state(model, optimizer, rho=(-0.5, 1.5), seed=3):
    """Away from the first step: norms and moments random; rho uniform over an interval, clipped to the box."""
    rng = np.random.default_rng([seed])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *IMAGE_HWC)), train=False))

    def value(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        if name == "rho":
            return np.clip(rng.uniform(*rho, leaf.shape), 0, 1)
        return rng.uniform(0.5, 1.5, leaf.shape)

    variables = jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(value, shapes))
    opt_state = optimizer.init(variables["params"])
    return TrainState(step=jnp.zeros((), jnp.int32), rho=variables.pop("rho", {}), **variables, opt_state=opt_state)
