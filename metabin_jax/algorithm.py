"""ALGORITHM 1 of the paper: base update, meta-train, meta-test.

Names: X_B, X_S, X_T are the batches xb, xs, xt (base, meta-train, meta-test); theta_f and phi are `params`,
theta_rho is `rho`, the BN running moments are `batch_stats`; alpha lives in `optimizer`, beta and gamma here.
Shapes: N images, D features, M identities of all sources, C channels of one norm layer; image_NHWC, pid_N.

Everything is pure: `jax.jit(metabin.train_step, donate_argnums=0)` is the whole trainer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

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

# A loss is a value (name, function), so that a row of Table 2 is another tuple and not a flag.
BaseLosses = tuple[tuple[str, Callable[[Array, Array, Array], Array]], ...]
MetaLosses = tuple[tuple[str, Callable[[Array, Array, Array], Array]], ...]

# Eq. 4; functions of (feature_ND, logits_NM, pid_N).
BASE_LOSSES: BaseLosses = (
    ("cross_entropy", lambda feature_ND, logits_NM, pid_N: losses.cross_entropy(logits_NM, pid_N)),
    ("triplet", lambda feature_ND, logits_NM, pid_N: losses.triplet(feature_ND, pid_N)),
)
# Eq. 10 and Eq. 8; functions of (feature_ND, pid_N, domain_N).
META_TEST_LOSSES: MetaLosses = (("triplet", lambda feature_ND, pid_N, domain_N: losses.triplet(feature_ND, pid_N)),)
META_TRAIN_LOSSES: MetaLosses = (
    ("scatter", lambda feature_ND, pid_N, domain_N: losses.scatter(feature_ND, domain_N)),
    ("shuffle", losses.shuffle),
    *META_TEST_LOSSES,
)


class Batch(flax.struct.PyTreeNode):
    """image [N, H, W, 3] float, normalised; pid [N] in 0..M-1 over all sources and domain [N], integers.

    key: a random key for a net that draws, as one with MixStyle does.
    """

    image: Array
    pid: Array
    domain: Array
    key: Array | None = None


class TrainState(flax.struct.PyTreeNode):
    """Arrays only: everything that changes from step to step. rho is {} for a model without it."""

    step: Array
    params: Tree
    rho: Tree
    batch_stats: Tree
    opt_state: Tree


def clip_straight_through(rho: Array) -> Array:
    """Value clipped to [0, 1]; the gradient passes as if it were not.

    rho starts on the edge of the box, where a plain clip would zero the meta-gradient of every channel that the inner
    step pushes outwards.
    """
    return jax.lax.stop_gradient(jnp.clip(rho, 0, 1)) + (rho - jax.lax.stop_gradient(rho))


def clip_plain(rho: Array) -> Array:
    """Value clipped to [0, 1]; the gradient is 0 outside of the box, and 1 in it and on its edge, as in PyTorch."""
    return jnp.where((rho < 0) | (rho > 1), jax.lax.stop_gradient(jnp.clip(rho, 0, 1)), rho)


@dataclasses.dataclass(frozen=True)
class MetaBIN:
    """The method with its settings. Methods are pure functions of a TrainState and batches.

    model: linen module, (image_NHWC, train) -> (feature_ND, embedding_ND, logits_NM), with collections params,
    batch_stats and, where there is something to balance, rho; what it draws comes from the rng collection mixstyle.
    optimizer: of params, alpha inside. beta, gamma: functions of the step (optax schedules) or constants. first_order:
    drop the Hessian of the inner update (Sec. 4.1). meta_base_losses: terms of the base loss's kind that join both meta
    losses; the supplement adds cross-entropy there where the domains are the cameras of one source. inner_clip: of
    rho'; `clip_plain` shows what passing straight through is good for.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    beta: optax.ScalarOrSchedule
    gamma: optax.ScalarOrSchedule = 0.1
    first_order: bool = True
    base_losses: BaseLosses = BASE_LOSSES
    meta_train_losses: MetaLosses = META_TRAIN_LOSSES
    meta_test_losses: MetaLosses = META_TEST_LOSSES
    meta_base_losses: BaseLosses = ()
    inner_clip: Callable[[Array], Array] = clip_straight_through

    def init(self, key: Array, image: Array) -> TrainState:
        """Line 1: a fresh state; `image` [N, H, W, 3] is looked at only for its shape and dtype."""
        variables = jax.jit(lambda key: self.model.init(key, jnp.zeros_like(image), train=False))(key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            rho=variables.get("rho", {}),
            batch_stats=variables["batch_stats"],
            opt_state=self.optimizer.init(variables["params"]),
        )

    def forward(self, state: TrainState, batch: Batch) -> tuple[tuple[Array, Array, Array], Tree]:
        """The model's outputs by the batch's own statistics, and the running statistics they lead to."""
        variables = {"params": state.params, "rho": state.rho, "batch_stats": state.batch_stats}
        rngs = None if batch.key is None else {"mixstyle": batch.key}
        outputs, updated = self.model.apply(variables, batch.image, train=True, mutable=["batch_stats"], rngs=rngs)
        return outputs, updated["batch_stats"]

    def base_loss(self, state: TrainState, xb: Batch) -> tuple[Array, tuple[Metrics, Tree]]:
        """Eq. 4: the sum of `base_losses` on X_B, each of them, and the running statistics that X_B leads to."""
        (feature_ND, _, logits_NM), batch_stats = self.forward(state, xb)
        terms = {name: loss(feature_ND, logits_NM, xb.pid) for name, loss in self.base_losses}
        return total(terms), (terms, batch_stats)

    def base_update(self, state: TrainState, xb: Batch) -> tuple[TrainState, Metrics]:
        """Lines 4-6, Eq. 2-5: params by SGD on X_B, running statistics updated; rho is not touched."""
        _check(xb)

        def base_loss(params):
            return self.base_loss(state.replace(params=params), xb)

        grads, (terms, batch_stats) = jax.grad(base_loss, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        return state, prefixed("base", terms)

    def meta_loss(self, state: TrainState, rho: Tree, batch: Batch, terms: MetaLosses) -> tuple[Array, Metrics]:
        """Sum of `terms` and meta_base_losses on `batch` at `rho`, and each; new running statistics are dropped."""
        (feature_ND, _, logits_NM), _ = self.forward(state.replace(rho=rho), batch)
        values = {name: loss(feature_ND, batch.pid, batch.domain) for name, loss in terms}
        values |= {name: loss(feature_ND, logits_NM, batch.pid) for name, loss in self.meta_base_losses}
        return total(values), values

    def inner_update(self, state: TrainState, xs: Batch) -> tuple[Tree, Metrics]:
        """Lines 11-12, Eq. 8-9: rho' = clip(rho - beta * grad L_mtr(X_S)), the clip being `inner_clip`.

        The first-order meta-gradient treats grad L_mtr as a constant, which is this one stop_gradient.
        """
        rho = jax.lax.stop_gradient(state.rho) if self.first_order else state.rho
        grads, terms = jax.grad(self.meta_loss, argnums=1, has_aux=True)(state, rho, xs, self.meta_train_losses)
        beta = at_step(self.beta, state.step)
        pushed = jax.tree.map(lambda r, g: r - beta * g, state.rho, grads)
        rho_inner = jax.tree.map(self.inner_clip, pushed)
        metrics = {
            "inner/beta": jnp.asarray(beta, jnp.float32),
            "inner/rho_change": _mean(jax.tree.map(lambda a, b: jnp.abs(a - b), rho_inner, state.rho)),
            "inner/clipped": _mean(jax.tree.map(lambda r: (r < 0) | (r > 1), pushed)),
        }
        return rho_inner, metrics | prefixed("meta_train", terms)

    def meta_gradient(self, state: TrainState, xs: Batch, xt: Batch) -> tuple[Tree, Metrics]:
        """Eq. 10: gradient of L_tr(X_T; rho') in rho through the inner update, shaped like rho, and metrics."""
        _check(xs)
        _check(xt)

        def meta_test_loss(rho):
            rho_inner, metrics = self.inner_update(state.replace(rho=rho), xs)
            loss, terms = self.meta_loss(state, rho_inner, xt, self.meta_test_losses)
            return loss, metrics | prefixed("meta_test", terms)

        return jax.grad(meta_test_loss, has_aux=True)(state.rho)

    def meta_update(self, state: TrainState, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        """Lines 10-15: rho <- clip(rho - gamma * meta-gradient); nothing else of the state is touched."""
        grads, metrics = self.meta_gradient(state, xs, xt)
        gamma = at_step(self.gamma, state.step)
        rho = jax.tree.map(lambda r, g: jnp.clip(r - gamma * g, 0, 1), state.rho, grads)
        return state.replace(rho=rho), metrics

    def train_step(self, state: TrainState, xb: Batch, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        """Lines 3-15: one iteration, base update then meta update, and one step on."""
        state, base_metrics = self.base_update(state, xb)
        state, meta_metrics = self.meta_update(state, xs, xt)
        return state.replace(step=state.step + 1), base_metrics | meta_metrics


def _check(batch: Batch) -> None:
    chex.assert_rank([batch.image, batch.pid, batch.domain], [4, 1, 1])
    chex.assert_equal_shape_prefix([batch.image, batch.pid, batch.domain], 1)


def at_step(value: optax.ScalarOrSchedule, step: Array) -> Any:
    """A constant, or the value of a schedule at this step."""
    return value(step) if callable(value) else value


def total(terms: Metrics) -> Array:
    """The sum of the terms, a scalar."""
    return jnp.asarray(sum(terms.values()))


def prefixed(prefix: str, terms: Metrics) -> Metrics:
    """The terms under their part's name: {"triplet": ...} -> {"base/triplet": ...}."""
    return {f"{prefix}/{name}": value for name, value in terms.items()}


def _mean(tree: Tree) -> Array:
    """Mean over all values of a tree."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]).mean()
