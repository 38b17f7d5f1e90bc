"""BN alone, and BIN with rho learned by the base loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compile_options import COMPILE_QUICKLY
from jax.flatten_util import ravel_pytree
from small_problem import draw_batch, small_net, start_state

from metabin_jax import losses
from metabin_jax.algorithm import MetaBIN
from metabin_jax.baselines import LearnedRho
from metabin_jax.baselines.learned_rho import RhoState
from metabin_jax.learner import Learner

OPTIMIZER = optax.sgd(0.05, momentum=0.9)
RHO_RATE, RHO_MOMENTUM = 2.0, 0.5

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def assert_identical(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_base_only_is_the_base_update_and_ignores_the_meta_batches():
    model = small_net("bn")
    state, xb = start_state(model, OPTIMIZER), draw_batch(range(5), 4)
    learner, metabin = (Learner(model, OPTIMIZER), MetaBIN(model, OPTIMIZER, beta=0.1))
    fresh = jax.eval_shape(learner.init, jax.random.key(0), xb.image)
    assert jax.tree.structure(fresh) == jax.tree.structure(state) and fresh.rho == {}

    @jit
    def both(state, xb):
        return learner.train_step(state, xb, None, None), metabin.base_update(state, xb)

    (after, metrics), (expected, expected_metrics) = both(state, xb)
    assert_identical((after, metrics), (expected.replace(step=state.step + 1), expected_metrics))
    assert np.abs(flat(after.params) - flat(state.params)).max() > 1e-3


@pytest.fixture(scope="module")
def bin_run():
    """Three steps of LearnedRho: before each step the state, its batch, the gradient in rho and MetaBIN's update."""
    model = small_net("bin")
    rho_optimizer = optax.sgd(RHO_RATE, momentum=RHO_MOMENTUM)
    learner = LearnedRho(model, OPTIMIZER, rho_optimizer=rho_optimizer)
    metabin = MetaBIN(model, OPTIMIZER, beta=0.1)

    def base_loss(rho, state, xb):
        """Eq. 4, written anew."""
        variables = {"params": state.params, "rho": rho, "batch_stats": state.batch_stats}
        outputs, _ = model.apply(variables, xb.image, train=True, mutable=["batch_stats"])
        return losses.cross_entropy(outputs[2], xb.pid) + losses.triplet(outputs[0], xb.pid)

    @jit
    def step(state, xb):
        expected = metabin.base_update(state, xb)
        return learner.train_step(state, xb, None, None), jax.grad(base_loss)(state.rho, state, xb), expected

    state = start_state(model, OPTIMIZER)
    states = [RhoState(**vars(state), rho_opt_state=rho_optimizer.init(state.rho))]
    gradients, expectations = [], []
    for seed in range(3):
        (state, metrics), gradient, expected = step(states[-1], draw_batch(range(5), seed))
        states.append(state)
        gradients.append(flat(gradient))
        expectations.append((metrics, expected))
    return states, gradients, expectations


def test_learned_rho_follows_its_own_optimizer(bin_run):
    states, gradients, _ = bin_run
    rho, momentum, bounded = flat(states[0].rho), 0.0, 0
    for state, gradient in zip(states[1:], gradients, strict=True):
        momentum = RHO_MOMENTUM * momentum + gradient
        free = rho - RHO_RATE * momentum
        rho = np.clip(free, 0, 1)
        bounded += ((free < 0) | (free > 1)).sum()
        np.testing.assert_allclose(flat(state.rho), rho, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(flat(optax.tree_utils.tree_get(state.rho_opt_state, "trace")), momentum, rtol=1e-9)
    assert bounded > 0
    assert np.abs(rho - flat(states[0].rho)).max() > 0.01
    assert np.abs(gradients[1] - gradients[0]).max() > 1e-3, "momentum must have something to show"


def test_learned_rho_leaves_everything_else_to_the_base_update(bin_run):
    states, _, expectations = bin_run
    for before, after, (metrics, (expected, expected_metrics)) in zip(states, states[1:], expectations, strict=False):
        assert after.step == before.step + 1
        assert_identical(metrics, expected_metrics)
        assert_identical(
            (after.params, after.batch_stats, after.opt_state),
            (expected.params, expected.batch_stats, expected.opt_state),
        )


def test_learned_rho_starts_with_the_state_of_both_optimizers():
    rho_optimizer = optax.sgd(RHO_RATE, momentum=RHO_MOMENTUM)
    learner = LearnedRho(small_net("bin"), OPTIMIZER, rho_optimizer=rho_optimizer)
    state = jax.eval_shape(learner.init, jax.random.key(0), jnp.zeros((1, 16, 8, 3)))
    for opt_state, tree in ((state.opt_state, state.params), (state.rho_opt_state, state.rho)):
        assert jax.tree.structure(optax.tree_utils.tree_get(opt_state, "trace")) == jax.tree.structure(tree)
