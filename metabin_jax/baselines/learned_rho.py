"""BIN: rho learned by the base loss, without meta-learning."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from metabin_jax.learner import Array, Batch, Learner, Metrics, TrainState, Tree


class RhoState(TrainState):
    """rho_opt_state: of the optimiser that moves rho."""

    rho_opt_state: Tree


@dataclasses.dataclass(frozen=True)
class LearnedRho(Learner):
    """BIN ([34]): the base loss moves rho too, by `rho_optimizer`, and rho is clipped to [0, 1]."""

    rho_optimizer: optax.GradientTransformation = dataclasses.field(kw_only=True)

    def init(self, key: Array, image: Array) -> RhoState:
        state = super().init(key, image)
        return RhoState(**vars(state), rho_opt_state=self.rho_optimizer.init(state.rho))

    def base_update(self, state: TrainState, xb: Batch) -> tuple[TrainState, Metrics]:
        def base_loss(rho):
            return self.base_loss(state.replace(rho=rho), xb)[0]

        moved = self.rho_update(state, jax.grad(base_loss)(state.rho))
        state, metrics = super().base_update(state, xb)
        return state.replace(**moved), metrics

    def rho_update(self, state: TrainState, grads: Tree) -> dict[str, Tree]:
        """rho after a step of its optimiser, clipped to [0, 1], and the optimiser's new state, as fields."""
        assert isinstance(state, RhoState)
        updates, rho_opt_state = self.rho_optimizer.update(grads, state.rho_opt_state, state.rho)
        rho = jax.tree.map(lambda r, u: jnp.clip(r + u, 0, 1), state.rho, updates)
        return {"rho": rho, "rho_opt_state": rho_opt_state}
