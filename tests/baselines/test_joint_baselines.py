"""MLDG and MetaBIN without separate episodes: their gradients by finite differences, their updates by hand."""

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
from metabin_jax.baselines import MLDG, Joint
from metabin_jax.baselines.learned_rho import RhoState
from metabin_jax.learner import BASE_LOSSES

OPTIMIZER, RHO_OPTIMIZER = optax.sgd(0.05, momentum=0.9), optax.sgd(2.0, momentum=0.5)
BETA = 0.02
INSIDE, EDGES = (0.3, 0.7), (-0.5, 1.5)
MLDG_LOSSES = {"meta_train_losses": BASE_LOSSES, "meta_test_losses": BASE_LOSSES}
# Class, norm layer, settings. MLDG's base batch is its meta-train batch.
KINDS = {
    "bn_mldg": (MLDG, "bn", MLDG_LOSSES),
    "bin_mldg": (MLDG, "bin", MLDG_LOSSES),
    "metabin_joint": (Joint, "metabin", {}),
}

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def learner(kind, first_order):
    cls, norm, settings = KINDS[kind]
    return cls(small_net(norm), OPTIMIZER, BETA, first_order=first_order, rho_optimizer=RHO_OPTIMIZER, **settings)


def state_of(kind, rho):
    state = start_state(small_net(KINDS[kind][1]), OPTIMIZER, rho)
    return RhoState(**vars(state), rho_opt_state=RHO_OPTIMIZER.init(state.rho))


def batches_of(kind):
    xs, xt = draw_batch((0, 2, 3), 5), draw_batch((1, 4), 6)
    return (xs if KINDS[kind][0] is MLDG else draw_batch(range(5), 4)), xs, xt


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def distance(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def by_hand(kind, state):
    """(the step's objective, its start): a function of the vector w alone, every loss and both steps written anew."""
    model = small_net(KINDS[kind][1])
    xb, xs, xt = batches_of(kind)
    start, unflatten = ravel_pytree((state.params, state.rho))

    def loss(w, batch, terms):
        params, rho = unflatten(w)
        variables = {"params": params, "rho": rho, "batch_stats": state.batch_stats}
        (feature_ND, _, logits_NM), _ = model.apply(variables, batch.image, train=True, mutable=["batch_stats"])
        values = {"tr": losses.triplet(feature_ND, batch.pid), "ce": losses.cross_entropy(logits_NM, batch.pid)}
        values["scat"] = losses.scatter(feature_ND, batch.domain)
        values["shuf"] = losses.shuffle(feature_ND, batch.pid, batch.domain)
        return sum(values[term] for term in terms)

    # Li et al. 2018: F(X_S; w) + F(X_T; w - beta grad F(X_S; w)); else Eq. 4, 8 and 10, added up.
    mldg = kind.endswith("mldg")
    base, meta_train, meta_test = (["ce", "tr"],) * 3 if mldg else (["ce", "tr"], ["scat", "shuf", "tr"], ["tr"])

    def objective(w):
        inner = w - BETA * jax.grad(loss)(w, xs, meta_train)
        return loss(w, xb, base) + loss(inner, xt, meta_test)

    return objective, start


@every_kind
def test_exact_gradient_is_that_of_finite_differences_and_the_first_order_one_is_not(kind):
    state = state_of(kind, INSIDE)
    objective, start = by_hand(kind, state)
    objective = jit(objective)

    def along(direction, h=1e-4):
        f = [float(objective(start + k * h * direction)) for k in (-2, -1, 1, 2)]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)

    direction_KW = np.random.default_rng([2]).normal(size=(40, len(start)))
    direction_KW /= np.linalg.norm(direction_KW, axis=1, keepdims=True)
    expected = np.array([along(direction) for direction in direction_KW])

    @jit
    def gradients(state):
        return [learner(kind, order).joint_gradient(state, *batches_of(kind))[0] for order in (False, True)]

    exact, first_order = (direction_KW @ flat(gradient) for gradient in gradients(state))
    assert distance(exact, expected) < 1e-7
    assert distance(first_order, expected) > 1e-4


@pytest.fixture(scope="module")
def steps():
    """Per kind, one step of the first order from the edges of the box: states, metrics, gradient, statistics."""

    @functools.cache
    def run(kind):
        model, state = small_net(KINDS[kind][1]), state_of(kind, EDGES)
        xb, xs, xt = batches_of(kind)

        def statistics(batch_stats, batch):
            variables = {"params": state.params, "rho": state.rho, "batch_stats": batch_stats}
            return model.apply(variables, batch.image, train=True, mutable=["batch_stats"])[1]["batch_stats"]

        @jit
        def all_of(state):
            own = learner(kind, first_order=True)
            given = None if KINDS[kind][0] is MLDG else xb
            once = statistics(state.batch_stats, xb)
            after, metrics = own.train_step(state, given, xs, xt)
            return after, metrics, own.joint_gradient(state, xb, xs, xt)[0], (once, statistics(once, xt))

        return state, *all_of(state)

    return run


@every_kind
def test_a_step_moves_params_and_rho_by_their_optimizers(steps, kind):
    state, after, _, (grads, rho_grads), _ = steps(kind)
    np.testing.assert_allclose(flat(after.params), flat(state.params) - 0.05 * flat(grads), rtol=1e-9, atol=1e-12)
    assert np.abs(flat(grads)).max() > 1e-3
    assert after.step == state.step + 1
    for opt_state, gradient in ((after.opt_state, grads), (after.rho_opt_state, rho_grads)):
        np.testing.assert_allclose(flat(optax.tree_utils.tree_get(opt_state, "trace")), flat(gradient), rtol=1e-9)
    if kind == "bn_mldg":
        assert state.rho == after.rho == {}
    else:
        free = flat(state.rho) - 2.0 * flat(rho_grads)
        assert ((free < 0) | (free > 1)).any()
        np.testing.assert_allclose(flat(after.rho), np.clip(free, 0, 1), rtol=1e-9, atol=1e-12)
        assert np.abs(flat(after.rho) - flat(state.rho)).max() > 1e-3


@every_kind
def test_running_statistics_see_what_the_base_loss_sees(steps, kind):
    _, after, _, _, (once, twice) = steps(kind)
    expected, other = (twice, once) if kind.endswith("mldg") else (once, twice)
    np.testing.assert_allclose(flat(after.batch_stats), flat(expected), rtol=1e-9)
    assert distance(flat(after.batch_stats), flat(other)) > 1e-3


@every_kind
def test_metrics_name_every_term(steps, kind):
    metrics = steps(kind)[2]
    base = {"base/cross_entropy", "base/triplet"}
    meta = ["cross_entropy", "triplet"] if kind.endswith("mldg") else ["scatter", "shuffle", "triplet"]
    assert base | {f"meta_train/{name}" for name in meta} <= metrics.keys()
    assert metrics["inner/beta"] == jnp.asarray(BETA, jnp.float32)
    assert np.isfinite([float(value) for value in metrics.values()]).all()


def test_rho_at_the_edge_is_clipped_straight_through_in_the_inner_step():
    own, (_, xs, _) = learner("metabin_joint", first_order=True), batches_of("metabin_joint")
    own = own.__class__(own.model, OPTIMIZER, 50.0, rho_optimizer=RHO_OPTIMIZER)
    state = state_of("metabin_joint", (1, 1))

    @jit
    def run(state):
        inner, pull = jax.vjp(lambda rho: own.joint_inner_update(state.replace(rho=rho), xs)[0].rho, state.rho)
        return inner, pull(jax.tree.map(jnp.ones_like, inner))[0]

    inner, gradient = map(flat, run(state))
    assert inner.min() < 1 and inner.max() == 1 and inner.min() >= 0
    np.testing.assert_array_equal(gradient, 1)
