"""What MetaBIN is compared with, built from algorithm.py's pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from metabin_jax.algorithm import Array, Batch, MetaBIN, Metrics, TrainState


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
            feature_ND, logits_NM, _ = self.forward(state.replace(rho=rho), xb.image)
            return sum(loss(feature_ND, logits_NM, xb.pid) for _, loss in self.base_losses)

        grads = jax.grad(base_loss)(state.rho)
        updates, rho_opt_state = self.rho_optimizer.update(grads, rho_opt_state, state.rho)
        rho = jax.tree.map(lambda r, u: jnp.clip(r + u, 0, 1), state.rho, updates)
        state, metrics = super().base_update(state, xb)
        return state.replace(rho=rho, opt_state=(state.opt_state, rho_opt_state)), metrics
