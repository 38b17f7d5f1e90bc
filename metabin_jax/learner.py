"""What all methods share: batches, the state, the form of a loss, and the base update (Algorithm 1, lines 3-6).

Shapes: N images, D features, M identities of all sources. Everything is pure: `jax.jit(learner.train_step,
donate_argnums=0)` is the whole trainer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from metabin_jax import losses

Array = jax.Array
Tree = Any
Metrics = dict[str, Array]


class Batch(flax.struct.PyTreeNode):
    """image [N, H, W, 3] float, normalised; pid [N] in 0..M-1 over all sources and domain [N], integers.

    key: a random key, for nets and losses that draw random numbers.
    """

    image: Array
    pid: Array
    domain: Array
    key: Array | None = None


class Outputs(NamedTuple):
    """What a model returns: the feature before BNNeck, the embedding after it, and the classifier's logits."""

    feature_ND: Array
    embedding_ND: Array
    logits_NM: Array


class TrainState(flax.struct.PyTreeNode):
    """Arrays only: everything that changes from step to step. rho is {} for a model without it."""

    step: Array
    params: Tree
    rho: Tree
    batch_stats: Tree
    opt_state: Tree


# A loss set is a tuple of named losses, so that a row of Table 2 is another tuple.
Loss = Callable[[Outputs, Batch], Array]
Losses = tuple[tuple[str, Loss], ...]


def cross_entropy(outputs: Outputs, batch: Batch, smoothing: float = 0.1) -> Array:
    """Eq. 2, see `losses.cross_entropy`."""
    return losses.cross_entropy(outputs.logits_NM, batch.pid, smoothing)


def triplet(outputs: Outputs, batch: Batch, margin: float = 0.3) -> Array:
    """Eq. 3, see `losses.triplet`."""
    return losses.triplet(outputs.feature_ND, batch.pid, margin)


BASE_LOSSES: Losses = (("cross_entropy", cross_entropy), ("triplet", triplet))  # Eq. 4


@dataclasses.dataclass(frozen=True)
class Learner:
    """Training by base updates alone, as BN, IN, half and DualNorm of Table 4; other methods extend it.

    model: linen module, (image_NHWC, train) -> (feature_ND, embedding_ND, logits_NM), with the collections params and,
    if its layers have any, batch_stats and rho; it draws from the rng collection `noise`. optimizer: of params, with
    alpha inside. base_losses: the terms of L_base.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    base_losses: Losses = dataclasses.field(default=BASE_LOSSES, kw_only=True)

    def train_step(self, state: TrainState, xb: Batch, xs: Any, xt: Any) -> tuple[TrainState, Metrics]:
        """One base update and one step on. Ignores xs and xt, the batches of meta-learning, which may be None."""
        state, metrics = self.base_update(state, xb)
        return state.replace(step=state.step + 1), metrics

    def init(self, key: Array, image: Array) -> TrainState:
        """Line 1: a fresh state. Of `image` [N, H, W, 3] only shape and dtype matter."""
        variables = jax.jit(lambda key: self.model.init(key, jnp.zeros_like(image), train=False))(key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            rho=variables.get("rho", {}),
            batch_stats=variables.get("batch_stats", {}),
            opt_state=self.optimizer.init(variables["params"]),
        )

    def forward(self, state: TrainState, batch: Batch) -> tuple[Outputs, Tree]:
        """The model's outputs with the batch's own statistics, and the updated running statistics."""
        variables = {"params": state.params, "rho": state.rho, "batch_stats": state.batch_stats}
        rngs = None if batch.key is None else {"noise": batch.key}
        outputs, updated = self.model.apply(variables, batch.image, train=True, mutable=["batch_stats"], rngs=rngs)
        if not isinstance(outputs, tuple) or len(outputs) != len(Outputs._fields):
            raise TypeError(f"the model must return learner.Outputs({', '.join(Outputs._fields)}), not {type(outputs)}")
        return Outputs(*outputs), updated.get("batch_stats", {})

    def base_loss(self, state: TrainState, xb: Batch) -> tuple[Array, tuple[Metrics, dict[str, Tree]]]:
        """Line 5, Eq. 4: the sum of `base_losses` on X_B; each term, and the other fields of the state it changes."""
        outputs, batch_stats = self.forward(state, xb)
        loss, terms = evaluate(self.base_losses, outputs, xb)
        return loss, (terms, {"batch_stats": batch_stats})

    def base_update(self, state: TrainState, xb: Batch) -> tuple[TrainState, Metrics]:
        """Lines 4-6, Eq. 2-5: updates params by SGD on X_B, and running statistics. Leaves rho untouched."""
        check(xb)

        def base_loss(params):
            return self.base_loss(state.replace(params=params), xb)

        grads, (terms, changed) = jax.grad(base_loss, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state, **changed), prefixed("base", terms)


def check(batch: Batch) -> None:
    """Raises AssertionError for arrays of the wrong rank or of different lengths."""
    shapes = "a batch is image [N, H, W, 3], pid [N] and domain [N]"
    chex.assert_rank([batch.image, batch.pid, batch.domain], [4, 1, 1], custom_message=shapes)
    chex.assert_equal_shape_prefix([batch.image, batch.pid, batch.domain], 1, custom_message=shapes)


def evaluate(loss_set: Losses, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
    """The sum of a loss set, and the value of each loss by its name."""
    terms = {name: loss(outputs, batch) for name, loss in loss_set}
    return jnp.asarray(sum(terms.values())), terms


def prefixed(prefix: str, terms: Metrics) -> Metrics:
    """The terms under their part's name: {"triplet": ...} -> {"base/triplet": ...}."""
    return {f"{prefix}/{name}": value for name, value in terms.items()}


def at_step(value: optax.ScalarOrSchedule, step: Array) -> Any:
    """A constant, or the value of a schedule at this step."""
    return value(step) if callable(value) else value


def descended(weights: Tree, grads: Tree, rate: Any) -> Tree:
    """weights - rate * grads, in the type of the weights: a rate of NumPy would make them float64 under x64."""
    return jax.tree.map(lambda w, g: w - jnp.asarray(rate, w.dtype) * g, weights, grads)


def clip_straight_through(rho: Array) -> Array:
    """Value clipped to [0, 1]; the gradient passes as if it were not clipped.

    rho starts on the edge of the box, where a plain clip would zero the meta-gradient of every channel that the inner
    step pushes outwards.
    """
    return jax.lax.stop_gradient(jnp.clip(rho, 0, 1)) + (rho - jax.lax.stop_gradient(rho))


def clip_plain(rho: Array) -> Array:
    """Value clipped to [0, 1]; the gradient is 0 outside the box and 1 inside and on its edge, as in PyTorch."""
    return jnp.where((rho < 0) | (rho > 1), jax.lax.stop_gradient(jnp.clip(rho, 0, 1)), rho)
