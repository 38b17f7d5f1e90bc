"""Meta-learning without separate episodes: all parameters in one update (Table 3)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from metabin_jax.algorithm import MetaBIN
from metabin_jax.baselines.learned_rho import LearnedRho
from metabin_jax.learner import Batch, Metrics, TrainState, Tree, at_step, descended, prefixed


@dataclasses.dataclass(frozen=True)
class Joint(LearnedRho, MetaBIN):
    """MetaBIN without the separation of episodes: all of w = (params, rho) is meta-learned, in one step.

    w descends L_base(X_B; w) + L_mte(X_T; w') with w' = w - beta * grad L_mtr(X_S; w); `optimizer` moves params,
    `rho_optimizer` rho. The paper has one line on it. We use the losses and batches of Algorithm 1.
    """

    def train_step(self, state: TrainState, xb: Batch, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        (grads, rho_grads), (changed, metrics) = self.joint_gradient(state, xb, xs, xt)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            **changed,
            **self.rho_update(state, rho_grads),
        )
        return state, metrics

    def joint_gradient(
        self, state: TrainState, xb: Batch, xs: Batch, xt: Batch
    ) -> tuple[tuple[Tree, Tree], tuple[dict[str, Tree], Metrics]]:
        """Gradients in (params, rho); the other fields of the state that X_B changes, and metrics."""

        def joint_loss(weights):
            here = state.replace(params=weights[0], rho=weights[1])
            base_loss, (base, changed) = self.base_loss(here, xb)
            inner, metrics = self.joint_inner_update(here, xs)
            meta_test, terms = self.meta_loss(inner, inner.rho, xt, self.meta_test_losses)
            metrics |= prefixed("base", base) | prefixed("meta_test", terms)
            return base_loss + meta_test, (changed, metrics)

        return jax.grad(joint_loss, has_aux=True)((state.params, state.rho))

    def joint_inner_update(self, state: TrainState, xs: Batch) -> tuple[TrainState, Metrics]:
        """The state at w'. As in MetaBIN, rho is clipped and the first order drops the Hessian."""

        def meta_train_loss(weights):
            return self.meta_loss(state.replace(params=weights[0]), weights[1], xs, self.meta_train_losses)

        weights = state.params, state.rho
        at = jax.lax.stop_gradient(weights) if self.first_order else weights
        grads, terms = jax.grad(meta_train_loss, has_aux=True)(at)
        beta = at_step(self.beta, state.step)
        params, rho = descended(weights, grads, beta)
        metrics = {"inner/beta": jnp.asarray(beta, jnp.float32)} | prefixed("meta_train", terms)
        return state.replace(params=params, rho=jax.tree.map(self.inner_clip, rho)), metrics


class MLDG(Joint):
    """Meta-learning domain generalisation (Li et al. 2018, [22]) of every parameter.

    w descends F(X_S; w) + F(X_T; w - beta * grad F(X_S; w)), where F is the base loss: give it as both meta losses too.
    xb is ignored. Running statistics are updated by X_S and X_T, both at w.
    """

    def train_step(self, state: TrainState, xb: Batch, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        after, metrics = super().train_step(state, xs, xs, xt)
        _, batch_stats = self.forward(state.replace(batch_stats=after.batch_stats), xt)
        return after.replace(batch_stats=batch_stats), metrics
