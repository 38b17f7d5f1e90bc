"""What MetaBIN is compared with, built from algorithm.py's pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from metabin_jax.algorithm import Array, Batch, MetaBIN, Metrics, TrainState, Tree, at_step, prefixed


class BaseOnly(MetaBIN):
    """Base updates alone, for layers without rho (BN, IN, half, DualNorm of Table 4); xs and xt are ignored."""

    def train_step(self, state: TrainState, xb: Batch, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        state, metrics = self.base_update(state, xb)
        return state.replace(step=state.step + 1), metrics


@dataclasses.dataclass(frozen=True)
class LearnedRho(BaseOnly):
    """BIN ([34]): rho is learned by the base loss and clipped to [0, 1]; there is no meta-learning.

    rho has an optimiser of its own, `rho_optimizer`, whose state joins that of params in `opt_state`.
    """

    rho_optimizer: optax.GradientTransformation = dataclasses.field(kw_only=True)

    def init(self, key: Array, image: Array) -> TrainState:
        state = super().init(key, image)
        return state.replace(opt_state=(state.opt_state, self.rho_optimizer.init(state.rho)))

    def base_update(self, state: TrainState, xb: Batch) -> tuple[TrainState, Metrics]:
        opt_state, rho_opt_state = state.opt_state
        state = state.replace(opt_state=opt_state)

        def base_loss(rho):
            return self.base_loss(state.replace(rho=rho), xb)[0]

        rho, rho_opt_state = self.rho_update(jax.grad(base_loss)(state.rho), rho_opt_state, state.rho)
        state, metrics = super().base_update(state, xb)
        return state.replace(rho=rho, opt_state=(state.opt_state, rho_opt_state)), metrics

    def rho_update(self, grads: Tree, rho_opt_state: Tree, rho: Tree) -> tuple[Tree, Tree]:
        """rho after a step of its optimiser, clipped to [0, 1], and the optimiser's new state."""
        updates, rho_opt_state = self.rho_optimizer.update(grads, rho_opt_state, rho)
        return jax.tree.map(lambda r, u: jnp.clip(r + u, 0, 1), rho, updates), rho_opt_state


@dataclasses.dataclass(frozen=True)
class Joint(LearnedRho):
    """MetaBIN without the separation of episodes (Table 3): all of w = (params, rho) is meta-learned, in one step.

    w descends L_base(X_B; w) + L_mte(X_T; w') with w' = w - beta * grad L_mtr(X_S; w); `optimizer` moves params,
    `rho_optimizer` rho. Of the paper's one line on it we take that the losses and batches are those of Algorithm 1.
    """

    def train_step(self, state: TrainState, xb: Batch, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        (grads, rho_grads), (batch_stats, metrics) = self.joint_gradient(state, xb, xs, xt)
        opt_state, rho_opt_state = state.opt_state
        updates, opt_state = self.optimizer.update(grads, opt_state, state.params)
        rho, rho_opt_state = self.rho_update(rho_grads, rho_opt_state, state.rho)
        state = state.replace(
            step=state.step + 1, params=optax.apply_updates(state.params, updates), rho=rho,
            batch_stats=batch_stats, opt_state=(opt_state, rho_opt_state),
        )  # fmt: skip
        return state, metrics

    def joint_gradient(
        self, state: TrainState, xb: Batch, xs: Batch, xt: Batch
    ) -> tuple[tuple[Tree, Tree], tuple[Tree, Metrics]]:
        """Gradients in (params, rho); the running statistics that X_B leads to, and metrics."""

        def joint_loss(weights):
            here = state.replace(params=weights[0], rho=weights[1])
            base_loss, (base, batch_stats) = self.base_loss(here, xb)
            inner, metrics = self.joint_inner_update(here, xs)
            meta_test, terms = self.meta_loss(inner, inner.rho, xt, self.meta_test_losses)
            metrics |= prefixed("base", base) | prefixed("meta_test", terms)
            return base_loss + meta_test, (batch_stats, metrics)

        return jax.grad(joint_loss, has_aux=True)((state.params, state.rho))

    def joint_inner_update(self, state: TrainState, xs: Batch) -> tuple[TrainState, Metrics]:
        """The state at w'; rho is clipped, and the first order drops the Hessian, as in MetaBIN."""

        def meta_train_loss(weights):
            return self.meta_loss(state.replace(params=weights[0]), weights[1], xs, self.meta_train_losses)

        weights = state.params, state.rho
        at = jax.lax.stop_gradient(weights) if self.first_order else weights
        grads, terms = jax.grad(meta_train_loss, has_aux=True)(at)
        beta = at_step(self.beta, state.step)
        params, rho = jax.tree.map(lambda w, g: w - beta * g, weights, grads)
        metrics = {"inner/beta": jnp.asarray(beta, jnp.float32)} | prefixed("meta_train", terms)
        return state.replace(params=params, rho=jax.tree.map(self.inner_clip, rho)), metrics


class MLDG(Joint):
    """Meta-learning domain generalisation (Li et al. 2018, [22]) of every parameter.

    w descends F(X_S; w) + F(X_T; w - beta * grad F(X_S; w)), F being the base loss: give it as `meta_base_losses` too,
    and no other meta losses. xb is ignored; running statistics see X_S and X_T, both at w.
    """

    def train_step(self, state: TrainState, xb: Batch, xs: Batch, xt: Batch) -> tuple[TrainState, Metrics]:
        after, metrics = super().train_step(state, xs, xs, xt)
        _, batch_stats = self.forward(state.replace(batch_stats=after.batch_stats), xt)
        return after.replace(batch_stats=batch_stats), metrics
