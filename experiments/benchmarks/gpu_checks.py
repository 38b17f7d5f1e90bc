"""Whether a device computes what it should: float32 there against float64 on the CPU, determinism and donation."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metabin_jax import losses, models, norm
from metabin_jax.algorithm import Batch, MetaBIN
from metabin_jax.evaluation.distances import distance_tile

RELATIVE, META_RELATIVE = 2e-5, 2e-3  # of float32 against float64: layers and losses; a net's meta-gradient


def apart(of: Callable[..., Any], *arguments: Any) -> float:
    """The largest difference of float32 on the device from float64 on the CPU, over the largest value."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        wide = jax.device_get(jax.jit(of)(*_as(arguments, np.float64)))
    narrow = jax.device_get(jax.jit(of)(*_as(arguments, np.float32)))
    pairs = zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) for a, b in pairs)


def _as(tree: Any, dtype: Any) -> Any:
    def cast(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    return jax.tree.map(cast, tree)


def checks() -> list[list[str]]:
    """Rows (what, found, allowed) for `experiments.benchmarks.gpu`."""
    return [[name, f"{value:.1e}", f"{allowed:.0e}"] for name, value, allowed in measured()]


def measured() -> Iterator[tuple[str, float, float]]:
    """(what, what was found, the most that is allowed)."""
    rng = np.random.default_rng(0)
    x_NHWC, weight_NHWC = rng.normal(3, 2, (12, 16, 8, 24)), rng.normal(size=(12, 16, 8, 24))
    for name in norm.LAYERS:
        layer = norm.create(name)(0.5, "norm", opens=True)
        shapes = jax.eval_shape(lambda layer=layer: layer.init(jax.random.key(0), jnp.zeros(x_NHWC.shape), train=False))
        variables = jax.tree.map(lambda leaf: rng.uniform(0.2, 0.8, leaf.shape), shapes)

        def value(variables, x_NHWC, weight_NHWC, layer=layer):
            y_NHWC, updated = layer.apply(variables, x_NHWC, train=True, mutable=["batch_stats"])
            return (weight_NHWC * jnp.sin(y_NHWC)).sum(), (y_NHWC, updated)

        both = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
        yield f"{name}: value and gradients", apart(both, variables, x_NHWC, weight_NHWC), RELATIVE
    feature_ND, pid_N, domain_N = rng.normal(0, 1, (48, 64)), np.arange(48) // 4, np.arange(48) // 16
    logits_NM = rng.normal(0, 2, (48, 12))
    yield "cross-entropy", apart(jax.value_and_grad(lambda z: losses.cross_entropy(z, pid_N)), logits_NM), RELATIVE
    for name, loss in (
        ("triplet", lambda f: losses.triplet(f, pid_N, 2.0)),
        ("scatter", lambda f: losses.scatter(f, domain_N)),
        ("shuffle", lambda f: losses.shuffle(f, pid_N, domain_N)),
    ):
        yield name, apart(jax.value_and_grad(loss), feature_ND), RELATIVE
    euclidean = functools.partial(distance_tile, metric="euclidean")
    yield "distances, without TF32", apart(euclidean, feature_ND, 2 * feature_ND[:20]), RELATIVE
    yield from _of_a_step(rng)


def _of_a_step(rng: np.random.Generator) -> Iterator[tuple[str, float, float]]:
    pid, domain = np.arange(40, dtype=np.int32) // 4, np.arange(40, dtype=np.int32) // 8
    images = rng.normal(size=(40, 32, 16, 3))
    xb, xs, xt = (Batch(images[r], pid[r], domain[r]) for r in (slice(0, 40), slice(0, 24), slice(24, 40)))
    for order in (True, False):
        learner = MetaBIN(models.create("tiny", 10), optax.sgd(0.01, 0.9), beta=0.1, first_order=order)
        state = learner.init(jax.random.key(0), jnp.zeros((1, 32, 16, 3)))
        with jax.default_matmul_precision("highest"):
            found = apart(lambda *a, own=learner: own.meta_gradient(*a)[0], state, xs, xt)
        yield f"meta-gradient, {'first order' if order else 'exact'}", found, META_RELATIVE
    step = jax.jit(learner.train_step, donate_argnums=0)
    parts = _as((xb, xs, xt), np.float32)
    after = [step(jax.tree.map(jnp.array, state), *parts)[0] for _ in range(2)]
    different = [np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, after), strict=True)]
    what = "arrays that differ when a step is repeated (0 where the libraries sum in a fixed order)"
    yield what, float(np.sum(different)), 0
    donated = jax.tree.map(jnp.array, state)
    step(donated, *parts)
    kept = sum(not leaf.is_deleted() for leaf in jax.tree.leaves(donated.params))
    yield "parameters that a step did not donate", float(kept), 0
