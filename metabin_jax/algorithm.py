"""ALGORITHM 1 of the paper: base update, meta-train, meta-test.

| paper | here |
|---|---|
| X_B, X_S, X_T: base, meta-train and meta-test batch | xb, xs, xt |
| theta_f and phi | `params` |
| theta_rho | `rho` |
| alpha; beta, gamma | inside `optimizer`; fields of `MetaBIN` |

Lines 4, 7, 8, 10 and 14 draw the batches: see `data.sampler`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metabin_jax import learner, losses
from metabin_jax.learner import Array, Batch, Learner, Losses, Metrics, Outputs, TrainState, Tree, clip_straight_through


def scatter(outputs: Outputs, batch: Batch, normalize_first: bool = False) -> Array:
    """Eq. 6, see `losses.scatter`."""
    return losses.scatter(outputs.feature_ND, batch.domain, normalize_first)


def shuffle(outputs: Outputs, batch: Batch) -> Array:
    """Eq. 7, see `losses.shuffle`."""
    return losses.shuffle(outputs.feature_ND, batch.pid, batch.domain)


META_TEST_LOSSES: Losses = (("triplet", learner.triplet),)  # Eq. 10
META_TRAIN_LOSSES: Losses = (("scatter", scatter), ("shuffle", shuffle), *META_TEST_LOSSES)  # Eq. 8


@dataclasses.dataclass(frozen=True)
class MetaBIN(Learner):
    """The method with its settings. Methods are pure functions of a TrainState and batches.

    model, optimizer, base_losses: as in `Learner`. beta, gamma: functions of the step (optax schedules) or constants.
    first_order: drop the Hessian of the inner update (Sec. 4.1). inner_clip: keeps rho' in [0, 1]; see
    `learner.clip_straight_through` for why the gradient should pass straight through.
    """

    beta: optax.ScalarOrSchedule
    gamma: optax.ScalarOrSchedule = 0.1
    first_order: bool = True
    meta_train_losses: Losses = META_TRAIN_LOSSES
    meta_test_losses: Losses = META_TEST_LOSSES
    inner_clip: Callable[[Array], Array] = clip_straight_through

    def train_step(self, state: TrainState, xb: Batch, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        """Lines 3-15: one iteration, base update then meta update, and one step on."""
        state, base_metrics = self.base_update(state, xb)  # lines 3-6
        state, meta_metrics = self.meta_update(state, xs, xt)  # lines 9-15
        return state.replace(step=state.step + 1), base_metrics | meta_metrics

    def meta_update(self, state: TrainState, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        """Lines 9-15: rho <- clip(rho - gamma * meta-gradient). Nothing else in the state changes."""
        grads, metrics = self.meta_gradient(state, xs, xt)
        gamma = learner.at_step(self.gamma, state.step)
        rho = learner.descended(state.rho, grads, gamma)  # line 15
        return state.replace(rho=jax.tree.map(lambda r: jnp.clip(r, 0, 1), rho)), metrics

    def meta_gradient(self, state: TrainState, xs: Batch, xt: Batch) -> tuple[Tree, Metrics]:
        """Eq. 10: gradient of L_tr(X_T; rho') in rho through the inner update, shaped like rho, and metrics.

        Raises ValueError if there is no rho to learn.
        """
        if not jax.tree.leaves(state.rho):
            raise ValueError("the model has no collection 'rho': give it norm layers such as norm.BatchInstanceNorm")
        learner.check(xs)
        learner.check(xt)

        def meta_test_loss(rho):
            rho_inner, metrics = self.inner_update(state.replace(rho=rho), xs)  # lines 10-12
            loss, terms = self.meta_loss(state, rho_inner, xt, self.meta_test_losses)  # lines 13-14
            return loss, metrics | learner.prefixed("meta_test", terms)

        return jax.grad(meta_test_loss, has_aux=True)(state.rho)

    def inner_update(self, state: TrainState, xs: Batch) -> tuple[Tree, Metrics]:
        """Lines 10-12, Eq. 8-9: rho' = clip(rho - beta * grad L_mtr(X_S)).

        The first-order meta-gradient treats grad L_mtr as a constant, which is this one stop_gradient.
        """
        rho = jax.lax.stop_gradient(state.rho) if self.first_order else state.rho
        grads, terms = jax.grad(self.meta_loss, argnums=1, has_aux=True)(state, rho, xs, self.meta_train_losses)
        beta = learner.at_step(self.beta, state.step)
        pushed = learner.descended(state.rho, grads, beta)  # line 12
        rho_inner = jax.tree.map(self.inner_clip, pushed)
        metrics = {
            "inner/beta": jnp.asarray(beta, jnp.float32),
            "inner/rho_change": _mean(jax.tree.map(lambda a, b: jnp.abs(a - b), rho_inner, state.rho)),
            "inner/clipped": _mean(jax.tree.map(lambda r: (r < 0) | (r > 1), pushed)),
        }
        return rho_inner, metrics | learner.prefixed("meta_train", terms)

    def meta_loss(self, state: TrainState, rho: Tree, batch: Batch, loss_set: Losses) -> tuple[Array, Metrics]:
        """The sum of a loss set on `batch` at `rho`, and each term. New running statistics are dropped."""
        outputs, _ = self.forward(state.replace(rho=rho), batch)
        return learner.evaluate(loss_set, outputs, batch)


def _mean(tree: Tree) -> Array:
    """Mean over all values of a tree."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]).mean()
