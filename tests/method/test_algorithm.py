"""Algorithm 1: the meta-gradient by two other ways, what each update may touch, one trace."""

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
from metabin_jax.algorithm import META_TEST_LOSSES, META_TRAIN_LOSSES, Batch, MetaBIN
from metabin_jax.learner import BASE_LOSSES, clip_plain

MODEL = small_net()
OPTIMIZER = optax.sgd(0.05, momentum=0.9)
# Both are 0 at step 0, so that one compiled program serves every beta and gamma.
BETA, GAMMA = (lambda step: 0.01 * step), (lambda step: 0.02 * step)
# The step at which beta is small enough for the inner update to stay in the box, and one at which it is not.
GENTLE, HARD = 2, 200
INSIDE, EDGES = (0.3, 0.7), (-0.5, 1.5)

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def random_state(rho, step, model=MODEL):
    return start_state(model, OPTIMIZER, rho).replace(step=jnp.asarray(step, jnp.int32))


def meta_batches(split=((0, 2, 3), (1, 4)), seed=5):
    return draw_batch(split[0], seed), draw_batch(split[1], seed + 1)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def distance(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def same_bits(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return [np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs]


class Recorded(MetaBIN):
    """Reports the meta-gradient, so that one compiled update shows both."""

    def meta_gradient(self, state, xs, xt):
        gradient, metrics = super().meta_gradient(state, xs, xt)
        return gradient, metrics | {"gradient": gradient}


@pytest.fixture(scope="module")
def updates():
    """(state, xb, xs, xt) -> (state, metrics) of each update by itself; for the meta update in either order."""
    exact = Recorded(MODEL, OPTIMIZER, BETA, GAMMA, first_order=False)
    first = Recorded(MODEL, OPTIMIZER, BETA, GAMMA)

    @jit
    def run(state, xb, xs, xt):
        return {
            "base": first.base_update(state, xb),
            "exact": exact.meta_update(state, xs, xt),
            "first order": first.meta_update(state, xs, xt),
        }

    return lambda state: run(state, draw_batch(range(5), 4), *meta_batches())


def meta_gradients(updates, state):
    found = updates(state)
    return flat(found["exact"][1]["gradient"]), flat(found["first order"][1]["gradient"])


def loss_by_hand(state, rho, batch, meta_train):
    """Eq. 8 or Eq. 10, written anew."""
    variables = {"params": state.params, "rho": rho, "batch_stats": state.batch_stats}
    feature_ND = MODEL.apply(variables, batch.image, train=True, mutable=["batch_stats"])[0][0]
    loss = losses.triplet(feature_ND, batch.pid)
    if meta_train:
        loss += losses.scatter(feature_ND, batch.domain) + losses.shuffle(feature_ND, batch.pid, batch.domain)
    return loss


@pytest.fixture(scope="module")
def by_hand():
    """The inner gradient g, v = grad L_mte(rho') and H v with H the Hessian of L_mtr; each as a vector."""

    @jit
    def run(state, xs, xt):
        rho, unflatten = ravel_pytree(state.rho)

        def gradient(rho, batch, meta_train):
            return jax.grad(lambda rho: loss_by_hand(state, unflatten(rho), batch, meta_train))(rho)

        inner = functools.partial(gradient, batch=xs, meta_train=True)
        g = inner(rho)
        v = gradient(jnp.clip(rho - BETA(state.step) * g, 0, 1), xt, meta_train=False)
        return {
            "g": g,
            "v": v,
            "forward over reverse": jax.jvp(inner, (rho,), (v,))[1],
            "reverse over reverse": jax.grad(lambda rho: inner(rho) @ v)(rho),
        }

    return lambda state: jax.tree.map(np.asarray, run(state, *meta_batches()))


def test_exact_gradient_is_that_of_finite_differences_and_the_first_order_one_is_not(updates):
    state = random_state(INSIDE, GENTLE)
    rho, unflatten = ravel_pytree(state.rho)

    @jit
    def meta_test_loss(rho, xs, xt):
        g = jax.grad(loss_by_hand, argnums=1)(state, unflatten(rho), xs, True)
        rho_inner = unflatten(rho - BETA(state.step) * ravel_pytree(g)[0])
        return loss_by_hand(state, rho_inner, xt, False)

    def along(direction, h=1e-4):
        f = [float(meta_test_loss(rho + k * h * direction, *meta_batches())) for k in (-2, -1, 1, 2)]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)

    expected = np.array([along(direction) for direction in np.eye(len(rho))])
    exact, first_order = meta_gradients(updates, state)
    assert distance(exact, expected) < 1e-8
    assert distance(first_order, expected) > 1e-3


@pytest.mark.parametrize("mode", ["forward over reverse", "reverse over reverse"])
@pytest.mark.parametrize(("rho", "step"), [(INSIDE, GENTLE), (EDGES, HARD), ((1, 1), HARD)])
def test_exact_gradient_is_v_minus_beta_hessian_v_and_the_first_order_one_is_v(updates, by_hand, mode, rho, step):
    state = random_state(rho, step)
    exact, first_order = meta_gradients(updates, state)
    found = by_hand(state)
    assert distance(first_order, found["v"]) < 1e-10
    assert distance(exact, found["v"] - BETA(step) * found[mode]) < 1e-10
    assert distance(exact, found["v"]) > 1e-3
    assert distance(exact, found["v"] + BETA(step) * found[mode]) > 1e-3


def test_without_beta_both_orders_are_the_plain_gradient(updates, by_hand):
    state = random_state(EDGES, step=0)
    exact, first_order = meta_gradients(updates, state)
    assert distance(exact, by_hand(state)["v"]) < 1e-12
    assert distance(first_order, by_hand(state)["v"]) < 1e-12


@pytest.mark.parametrize("order", ["exact", "first order"])
def test_inner_metrics_are_those_of_numpy(updates, by_hand, order):
    for rho, step in ((INSIDE, GENTLE), (EDGES, HARD), (EDGES, 0)):
        state = random_state(rho, step)
        metrics = updates(state)[order][1]
        pushed = flat(state.rho) - BETA(step) * by_hand(state)["g"]
        clipped = np.mean((pushed < 0) | (pushed > 1))
        assert (0 < clipped < 1) == (step == HARD), "being on the edge is not being clipped"
        np.testing.assert_allclose(metrics["inner/clipped"], clipped, rtol=1e-6)
        change = np.abs(np.clip(pushed, 0, 1) - flat(state.rho)).mean()
        assert (change > 0) == (step > 0)
        np.testing.assert_allclose(metrics["inner/rho_change"], change, rtol=1e-9)
        np.testing.assert_allclose(metrics["inner/beta"], BETA(step), rtol=1e-6)


def test_at_the_edge_a_plain_clip_would_lose_channels(updates, by_hand):
    state = random_state((1, 1), HARD)
    found = by_hand(state)
    pushed_out = flat(state.rho) - BETA(HARD) * found["g"] > 1
    _, first_order = meta_gradients(updates, state)
    assert 0 < pushed_out.sum() < len(pushed_out)
    assert (np.abs(first_order[pushed_out]) > 1e-6).all()
    plain = jax.vjp(lambda rho: jnp.clip(rho - BETA(HARD) * found["g"], 0, 1), flat(state.rho))[1](found["v"])[0]
    assert (np.asarray(plain)[pushed_out] == 0).all()


def test_the_meta_gradient_through_a_plain_clip_is_0_where_it_clips(by_hand):
    """By hand: u is v where the inner step stays in the box, else 0; exactly, u - beta H u."""
    state = random_state((1, 1), HARD)
    xs, xt = meta_batches()
    found = by_hand(state)
    inside = flat(state.rho) - BETA(HARD) * found["g"] <= 1
    assert 0 < inside.sum() < len(inside)
    u = np.where(inside, found["v"], 0)

    @jit
    def run(state, u):
        rho, unflatten = ravel_pytree(state.rho)
        inner = jax.grad(lambda rho: loss_by_hand(state, unflatten(rho), xs, True))
        orders = [MetaBIN(MODEL, OPTIMIZER, BETA, GAMMA, order, inner_clip=clip_plain) for order in (True, False)]
        return [each.meta_gradient(state, xs, xt)[0] for each in orders], jax.jvp(inner, (rho,), (u,))[1]

    (first_order, exact), hessian_u = run(state, u)
    assert distance(flat(first_order), u) < 1e-10 and (flat(first_order)[~inside] == 0).all()
    assert distance(flat(exact), u - BETA(HARD) * hessian_u) < 1e-10
    assert distance(found["v"], u) > 1e-2, "straight through is another gradient"


def test_losses_on_logits_join_both_meta_losses():
    """The supplement's cross-entropy; the gradient is that of the losses written out."""
    state = random_state(INSIDE, GENTLE)
    xs, xt = meta_batches()
    with_logits = MetaBIN(
        MODEL, OPTIMIZER, BETA, GAMMA,
        meta_train_losses=(*META_TRAIN_LOSSES, BASE_LOSSES[0]), meta_test_losses=(*META_TEST_LOSSES, BASE_LOSSES[0]),
    )  # fmt: skip

    def loss(rho, batch, meta_train):
        variables = {"params": state.params, "rho": rho, "batch_stats": state.batch_stats}
        (_, _, logits_NM), _ = MODEL.apply(variables, batch.image, train=True, mutable=["batch_stats"])
        smoothed_NM = 0.9 * jax.nn.one_hot(batch.pid, logits_NM.shape[1]) + 0.1 / logits_NM.shape[1]
        cross_entropy = -(smoothed_NM * jax.nn.log_softmax(logits_NM)).sum(1).mean()
        return loss_by_hand(state, rho, batch, meta_train) + cross_entropy

    @jit
    def run(state):
        g = jax.grad(loss)(state.rho, xs, True)
        rho_inner = jax.tree.map(lambda r, g: jnp.clip(r - BETA(state.step) * g, 0, 1), state.rho, g)
        expected = jax.grad(loss)(rho_inner, xt, False)
        without = MetaBIN(MODEL, OPTIMIZER, BETA, GAMMA).meta_gradient(state, xs, xt)[0]
        return expected, with_logits.meta_gradient(state, xs, xt), without

    expected, (gradient, metrics), without = run(state)
    assert distance(flat(gradient), flat(expected)) < 1e-10
    assert distance(flat(without), flat(expected)) > 1e-3
    assert {"meta_train/cross_entropy", "meta_test/cross_entropy"} < set(metrics)


def test_base_update_moves_everything_but_rho(updates):
    state = random_state(EDGES, HARD)
    after, metrics = updates(state)["base"]
    assert all(same_bits((state.rho, state.step), (after.rho, after.step)))
    for moved in ("params", "batch_stats", "opt_state"):
        assert not any(same_bits(getattr(state, moved), getattr(after, moved))), moved
    assert metrics.keys() == {"base/cross_entropy", "base/triplet"}


@pytest.mark.parametrize("order", ["exact", "first order"])
def test_meta_update_moves_nothing_but_rho(updates, order):
    state = random_state(EDGES, HARD)
    after, metrics = updates(state)[order]
    assert all(same_bits(state.replace(rho={}), after.replace(rho={})))
    pushed = flat(state.rho) - GAMMA(HARD) * flat(metrics["gradient"])
    assert (pushed < 0).any() and (pushed > 1).any()
    rho = flat(after.rho)
    assert 0 == rho.min() < rho.max() == 1
    np.testing.assert_allclose(rho, np.clip(pushed, 0, 1), rtol=0, atol=1e-12)
    assert not any(same_bits(state.rho, after.rho))
    terms = {"meta_train/scatter", "meta_train/shuffle", "meta_train/triplet", "meta_test/triplet"}
    assert metrics.keys() - {"gradient"} == terms | {"inner/beta", "inner/rho_change", "inner/clipped"}


TRACES = []


def counting(outputs, batch):
    TRACES.append(outputs.feature_ND.shape)
    return 0.0


def test_one_trace_serves_every_split_and_step():
    deeper, before = small_net(blocks=1), len(TRACES)
    trainer = MetaBIN(deeper, OPTIMIZER, BETA, GAMMA, base_losses=(*BASE_LOSSES, ("count", counting)))
    train_step = jit(trainer.train_step, donate_argnums=0)  # the whole trainer, as users compile it
    state = random_state(EDGES, GENTLE, deeper)
    for seed, split in enumerate([((0, 1, 2), (3, 4)), ((4, 2, 0), (1, 3)), ((3, 1, 4), (0, 2))]):
        last, (state, _) = state, train_step(state, draw_batch(range(5), seed), *meta_batches(split, 2 * seed))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(last)), "the state is donated"
    assert len(TRACES) == before + 1
    assert state.step == GENTLE + 3 and state.step.dtype == jnp.int32
    smaller = draw_batch([0, 1], seed=0)
    jax.eval_shape(train_step, random_state(EDGES, GENTLE, deeper), smaller, smaller, smaller)
    assert len(TRACES) == before + 2, "another shape must be seen as another trace"


@pytest.mark.parametrize(
    "change",
    [{"pid": jnp.zeros((8, 1), jnp.int32)}, {"domain": jnp.zeros(7, jnp.int32)}, {"image": jnp.zeros((8, 16, 8))}],
    ids=["rank of pid", "length of domain", "rank of image"],
)
def test_batch_of_wrong_shape_is_refused(change):
    good, state = draw_batch([0, 1], seed=0), random_state(EDGES, GENTLE)
    bad = Batch(**{"image": good.image, "pid": good.pid, "domain": good.domain} | change)
    metabin = MetaBIN(MODEL, OPTIMIZER, BETA)
    for update, batches in ((metabin.base_update, (bad,)), (metabin.meta_update, (bad, good))):
        with pytest.raises(AssertionError):
            jax.eval_shape(update, state, *batches)
