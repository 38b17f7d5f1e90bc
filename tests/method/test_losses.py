"""The losses by loops over images, and their derivatives where distances are 0 or negatives are missing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_options import COMPILE_QUICKLY

from metabin_jax import losses

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)

LOSSES = {
    "cross_entropy": lambda x, pid, domain: losses.cross_entropy(x, pid),
    "triplet": lambda x, pid, domain: losses.triplet(x, pid),
    "scatter": lambda x, pid, domain: losses.scatter(x, domain),
    "scatter, normalised first": lambda x, pid, domain: losses.scatter(x, domain, normalize_first=True),
    "shuffle": losses.shuffle,
}


# --- by loops -------------------------------------------------------------------------------------------------------

# Domains of 5, 3 and 2 images; identities with one image; the last domain has a single identity.
DOMAIN = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
PID = [0, 0, 1, 1, 2, 3, 3, 4, 5, 5]
ANCHORS = range(len(PID))


def log_softmax(row):
    return [value - math.log(sum(math.exp(other) for other in row)) for value in row]


def cross_entropy_by_hand(x, share_of_other, share_of_identity):
    loss = 0.0
    for i in ANCHORS:
        for m, log_prob in enumerate(log_softmax(x[i])):
            loss -= (share_of_identity if m == PID[i] else share_of_other) * log_prob
    return loss / len(PID)


def triplet_by_hand(x):
    loss = 0.0
    for i in ANCHORS:
        farthest = max(math.dist(x[i], x[j]) for j in ANCHORS if PID[j] == PID[i])
        nearest = min(math.dist(x[i], x[j]) for j in ANCHORS if PID[j] != PID[i])
        loss += max(0.0, farthest - nearest + 0.3)
    return loss / len(PID)


def cosine(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def centroid(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def scatter_by_hand(x):
    """Mean over samples of the cosine to the centroid of raw features."""
    members = {k: [x[j] for j in ANCHORS if DOMAIN[j] == k] for k in DOMAIN}
    return sum(cosine(x[i], centroid(members[DOMAIN[i]])) for i in ANCHORS) / len(PID)


def official_scatter_by_hand(x):
    """Mean over domains of the mean cosine to the centroid of normalised features."""
    means = []
    for k in sorted(set(DOMAIN)):
        units = [[value / math.hypot(*x[j]) for value in x[j]] for j in ANCHORS if DOMAIN[j] == k]
        means.append(sum(cosine(unit, centroid(units)) for unit in units) / len(units))
    return sum(means) / len(means)


def shuffle_by_hand(x):
    loss = 0.0
    for i in ANCHORS:
        inter = [math.dist(x[i], x[j]) for j in ANCHORS if DOMAIN[j] != DOMAIN[i]]
        intra = [math.dist(x[i], x[j]) for j in ANCHORS if DOMAIN[j] == DOMAIN[i] and PID[j] != PID[i]]
        if inter and intra:
            loss += math.log1p(math.exp(max(inter) - min(intra)))
    return loss / len(PID)


BY_HAND = {
    "cross_entropy": lambda x: cross_entropy_by_hand(x, 0.1 / 6, 0.9 + 0.1 / 6),
    "triplet": triplet_by_hand,
    "scatter": scatter_by_hand,
    "scatter, normalised first": official_scatter_by_hand,
    "shuffle": shuffle_by_hand,
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_that_of_loops(name):
    rng = np.random.default_rng([4])
    x = rng.normal(0.5, 1, (6, 6))[PID] + rng.normal(0, 0.6, (len(PID), 6))
    with jax.enable_x64(True):
        actual = float(jit(LOSSES[name])(x, np.array(PID), np.array(DOMAIN)))
    assert actual == pytest.approx(BY_HAND[name](x.tolist()), rel=1e-12)
    others = [by_hand(x.tolist()) for other, by_hand in BY_HAND.items() if other != name]
    assert all(abs(actual / other - 1) > 1e-3 for other in others)


def test_released_smoothing_is_the_textbook_one_at_another_epsilon():
    """eps / (M - 1) on the others and 1 - eps on the identity is eps' = eps * M / (M - 1)."""
    x, classes = np.random.default_rng([5]).normal(size=(len(PID), 6)), 6
    released = cross_entropy_by_hand(x.tolist(), 0.1 / (classes - 1), 0.9)
    smoothing = np.array([0.1 * classes / (classes - 1), 0.1])
    with jax.enable_x64(True):
        same, other = jit(jax.vmap(lambda eps: losses.cross_entropy(x, np.array(PID), eps)))(smoothing).tolist()
    assert same == pytest.approx(released, rel=1e-12)
    assert other != pytest.approx(released, rel=1e-4)


# --- derivatives where something is missing -------------------------------------------------------------------------


def careless_triplet(x, pid, domain):
    """What everyone writes first: the square root of a difference that is 0."""
    square_NN = jnp.square(x[:, None] - x[None, :]).sum(2)
    same_NN = pid[:, None] == pid[None, :]
    dist_NN = jnp.sqrt(square_NN)
    farthest_N, nearest_N = jnp.where(same_NN, dist_NN, 0).max(1), jnp.where(same_NN, jnp.inf, dist_NN).min(1)
    return jax.nn.relu(farthest_N - nearest_N + 0.3).mean()


@jit
def derivatives(x, pid, domain):
    """Of every loss: value, gradient and the Hessian in both modes."""
    found = {}
    for name, loss in (LOSSES | {"careless": careless_triplet}).items():
        gradient = jax.grad(loss)
        by_mode = (jax.jacfwd(gradient), jax.jacrev(gradient)) if name != "careless" else ()
        found[name] = [f(x, pid, domain) for f in (loss, gradient, *by_mode)]
    return found


# Close enough that the margin is violated.
DISTINCT = np.random.default_rng([6]).normal(0, 0.1, (4, 4))
# name: (x, pid, domain)
CASES = {
    "nothing missing": (DISTINCT, [0, 0, 1, 2], [0, 0, 0, 1]),
    "the same image twice": (DISTINCT[[0, 0, 1, 2]], [0, 0, 1, 2], [0, 0, 0, 1]),
    "the same image in two identities and domains": (DISTINCT[[0, 1, 0, 1]], [0, 0, 1, 2], [0, 0, 1, 1]),
    "the same image only": (DISTINCT[[0, 0, 0, 0]], [0, 0, 1, 2], [0, 0, 1, 1]),
    "zeros": (np.zeros((4, 4)), [0, 0, 1, 2], [0, 0, 1, 1]),
    "one identity": (DISTINCT, [1, 1, 1, 1], [0, 0, 0, 0]),
    "one domain": (DISTINCT, [0, 0, 1, 1], [2, 2, 2, 2]),
    "one identity in each domain": (DISTINCT, [0, 0, 1, 1], [0, 0, 1, 1]),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_finite(case, dtype):
    x, pid, domain = CASES[case]
    found = derivatives(x.astype(dtype), np.array(pid, np.int32), np.array(domain, np.int32))
    careless = found.pop("careless")
    assert np.isnan(np.asarray(careless[1], np.float32)).any(), "such cases do break the square root"
    for name, (value, gradient, *hessians) in found.items():
        assert value.dtype == jnp.float32, name
        assert gradient.dtype == dtype, name
        for array in (value, gradient, *hessians):
            assert np.isfinite(np.asarray(array, np.float32)).all(), name
        if dtype == jnp.float32:
            # Both orders round in float32; how much depends on the processor.
            np.testing.assert_allclose(*hessians, rtol=1e-3, atol=3e-4, err_msg=name)
    without_pairs = {"one domain", "one identity", "one identity in each domain"}
    assert (float(found["shuffle"][0]) == 0) == (case in without_pairs)
    assert (float(found["triplet"][0]) == 0) == (case == "one identity")
    for name, zero_cases in (("shuffle", without_pairs), ("triplet", {"one identity"})):
        if case in zero_cases:
            assert not any(np.asarray(array, np.float32).any() for array in found[name])
    if case == "nothing missing":
        assert all(np.asarray(array, np.float32).any() for arrays in found.values() for array in arrays)


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_rank_is_refused(name):
    image, label = jnp.zeros((4, 4, 4)), jnp.zeros(4, jnp.int32)
    for arguments in ((image, label, label), (image[0], label[:, None], label[:, None])):
        with pytest.raises(AssertionError):
            jax.eval_shape(LOSSES[name], *arguments)
    assert jax.eval_shape(LOSSES[name], image[0], label, label).shape == ()


# --- float32 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "cross_entropy"])
def test_products_are_of_full_precision(loss):
    """Otherwise a GPU rounds their factors to TF32, which a CPU cannot show. Values and gradients."""
    x = jnp.ones((len(PID), 4), jnp.float32)
    of_x = jax.value_and_grad(lambda x: LOSSES[loss](x, jnp.array(PID), jnp.array(DOMAIN)))
    text = str(jax.make_jaxpr(of_x)(x))
    assert text.count("dot_general") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 1


@pytest.mark.parametrize("loss", ["triplet", "shuffle"])
def test_a_common_offset_of_all_features_costs_no_digits(loss):
    """As after a ReLU, where the spread of wide features is small against their mean."""
    x = 1 + 0.01 * np.random.default_rng(0).normal(size=(len(PID), 1792))
    x = x.astype(np.float32).astype(np.float64)
    labels = np.array(PID), np.array(DOMAIN)
    with jax.enable_x64(True):
        expected = float(LOSSES[loss](jnp.asarray(x), *labels))
    actual = float(LOSSES[loss](jnp.asarray(x, jnp.float32), *labels))
    assert actual == pytest.approx(expected, rel=1e-6)
    single = x.astype(np.float32)
    square, product = (single**2).sum(1), single @ single.T
    uncentred = np.sqrt(np.maximum(square[:, None] + square - 2 * product, 0))
    exact = np.linalg.norm(x[:, None] - x, axis=2)
    assert np.abs(uncentred - exact)[exact > 0].max() > 1e-4 * exact.max()
