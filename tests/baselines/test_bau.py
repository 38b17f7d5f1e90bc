"""BAU's terms and bank against loops in NumPy, its strong view by pixel arithmetic, and a step of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compile_options import COMPILE_QUICKLY
from small_problem import CLASSES, draw_batch, small_net

from metabin_jax import losses
from metabin_jax.baselines import bau
from metabin_jax.data.augment import MEAN, STD, disturb, jitter

N, D, M = 8, 3, 12
PID = np.array([0, 0, 3, 3, 5, 5, 7, 7])
DOMAIN = np.array([0, 0, 0, 0, 1, 1, 1, 1])
# Identity 9 was not seen; 2 is of another domain than everything in the batch.
BANK_DOMAIN = np.array([0, 0, 2, 0, 0, 1, 1, 1, 1, -1, 0, 1])

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw_units(count, seed):
    vectors = np.random.default_rng([seed]).normal(size=(count, D))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


ORIGINAL, STRONG, PROTOTYPE = draw_units(N, 0), draw_units(N, 1), draw_units(M, 2)
STRONG = ORIGINAL + 0.4 * STRONG
STRONG /= np.linalg.norm(STRONG, axis=1, keepdims=True)


def square_distance(a, b):
    return ((a - b) ** 2).sum()


def jaccard(neighbours=bau.NEIGHBOURS):
    """Of strong view i and original j, by sets."""
    both = np.concatenate([ORIGINAL, STRONG])
    near = [
        set(sorted(range(2 * N), key=lambda k, i=i: square_distance(both[i], both[k]))[:neighbours])
        for i in range(2 * N)
    ]
    mutual = [{k for k in near[i] if i in near[k]} for i in range(2 * N)]
    return np.array(
        [[len(mutual[N + i] & mutual[j]) / len(mutual[N + i] | mutual[j]) for j in range(N)] for i in range(N)]
    )


def test_reliability_is_the_jaccard_index_of_mutual_neighbours():
    actual = np.asarray(bau.reliability(jnp.asarray(ORIGINAL), jnp.asarray(STRONG)))
    np.testing.assert_allclose(actual, jaccard(), rtol=1e-12)
    assert np.abs(actual - actual.T).max() > 0.05 and np.abs(actual - jaccard(9)).max() > 0.05
    assert 0 <= actual.min() < actual.max() <= 1


def test_alignment_is_a_weighted_mean_over_positives():
    def by_loops(weight):
        total = count = 0.0
        for i in range(N):
            for j in range(N):
                if PID[i] == PID[j]:
                    total += weight[i, j] * square_distance(STRONG[i], ORIGINAL[j])
                    count += weight[i, j]
        return total / count

    actual = float(bau.alignment(jnp.asarray(ORIGINAL), jnp.asarray(STRONG), jnp.asarray(PID)))
    assert actual == pytest.approx(by_loops(jaccard()), rel=1e-12)
    assert actual != pytest.approx(by_loops(np.ones((N, N))), rel=1e-3), "the weights must matter"


def test_uniformity_is_over_pairs():
    pairs = [np.exp(-2 * square_distance(ORIGINAL[i], ORIGINAL[j])) for i in range(N) for j in range(i)]
    actual = float(bau.uniformity(jnp.asarray(ORIGINAL)))
    assert actual == pytest.approx(np.log(np.mean(pairs)), rel=1e-12)
    assert actual != pytest.approx(np.log(np.mean(pairs + [1.0] * N)), rel=1e-3), "an image with itself is no pair"
    assert float(bau.uniformity(jnp.asarray(np.tile(ORIGINAL[:1], (N, 1))))) == pytest.approx(0)


def bank(domain=BANK_DOMAIN):
    return {"prototype": jnp.asarray(PROTOTYPE), "domain": jnp.asarray(domain)}


def test_domain_uniformity_is_over_the_nearest_prototypes_of_other_identities_of_the_domain():
    def by_loops(images, same_identity=False):
        near = []
        for i in range(images):
            others = [
                square_distance(ORIGINAL[i], PROTOTYPE[m])
                for m in range(M)
                if BANK_DOMAIN[m] == DOMAIN[i] and (same_identity or m != PID[i])
            ]
            near += [np.exp(-2 * distance) for distance in sorted(others)[:images]]
        return np.log(np.mean(near))

    actual = jit(
        lambda images: bau.domain_uniformity(
            images, jnp.asarray(PID[: len(images)]), jnp.asarray(DOMAIN[: len(images)]), bank()
        )
    )
    every, nearest = (float(actual(jnp.asarray(ORIGINAL[:images]))) for images in (N, 3))
    assert every == pytest.approx(by_loops(N), rel=1e-12)
    assert nearest == pytest.approx(by_loops(3), rel=1e-12), "with three images, only the three nearest"
    assert every != pytest.approx(by_loops(N, same_identity=True), rel=1e-3)


def test_without_a_prototype_domain_uniformity_is_0_and_has_no_gradient():
    def loss(images):
        return bau.domain_uniformity(images, jnp.asarray(PID), jnp.asarray(DOMAIN), bank(np.full(M, -1)))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(ORIGINAL))
    assert value == 0 and (np.asarray(gradient) == 0).all()


def test_the_bank_follows_image_after_image():
    def by_loops(order):
        prototype, domain = np.where(BANK_DOMAIN[:, None] < 0, 0, PROTOTYPE), BANK_DOMAIN.copy()
        for i in order:
            moved = 0.1 * prototype[pid[i]] + 0.9 * ORIGINAL[i]
            prototype[pid[i]], domain[pid[i]] = moved / np.linalg.norm(moved), DOMAIN[i]
        return prototype, domain

    pid = np.array([0, 0, 3, 3, 9, 9, 7, 7])
    start = bank() | {"prototype": jnp.where(jnp.asarray(BANK_DOMAIN)[:, None] < 0, 0, jnp.asarray(PROTOTYPE))}
    after = bau.add(start, jnp.asarray(ORIGINAL), jnp.asarray(pid), jnp.asarray(DOMAIN))
    prototype, domain = by_loops(range(N))
    np.testing.assert_allclose(after["prototype"], prototype, rtol=1e-12)
    np.testing.assert_array_equal(after["domain"], domain)
    assert domain[9] == 1
    assert np.abs(np.asarray(after["prototype"]) - by_loops(reversed(range(N)))[0]).max() > 1e-2


def test_jitter_is_that_of_pixel_arithmetic():
    image = np.random.default_rng([3]).uniform(size=(2, 3, 4, 3))
    factors = [np.array(values).reshape(2, 1, 1, 1) for values in ((1.6, 1.0), (0.5, 1.8), (2.0, 0.6))]
    expected = np.empty_like(image)
    for n in range(2):
        brightness, contrast, saturation = (float(factor[n, 0, 0, 0]) for factor in factors)
        bright = [[[min(value * brightness, 1) for value in pixel] for pixel in row] for row in image[n]]
        luma = [0.299 * r + 0.587 * g + 0.114 * b for row in bright for r, g, b in row]
        middle = sum(luma) / len(luma)
        for y in range(3):
            for x in range(4):
                pixel = [min(max(middle + contrast * (value - middle), 0), 1) for value in bright[y][x]]
                grey = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
                expected[n, y, x] = [min(max(grey + saturation * (value - grey), 0), 1) for value in pixel]
    np.testing.assert_allclose(jitter(jnp.asarray(image), *map(jnp.asarray, factors)), expected, rtol=1e-10)
    assert np.abs(expected - image).max() > 0.1


def test_a_strong_view_changes_colours_and_cuts_holes():
    """Each in half of the images, on their own; holes are rectangles of the announced sizes."""
    height, width = 32, 16
    pixels = np.random.default_rng([4]).uniform(0.2, 0.8, (400, height, width, 3))
    image = ((pixels - MEAN) / STD).astype(np.float32)
    view = np.asarray(jax.jit(disturb)(jax.random.key(0), jnp.asarray(image)))
    hole = (view == 0).all(3)
    has_hole = hole.any((1, 2))
    recoloured = np.array([np.abs(view[n] - image[n])[~hole[n]].max() > 1e-3 for n in range(len(image))])
    assert 0.4 < has_hole.mean() < 0.6 and 0.4 < recoloured.mean() < 0.6
    assert 0.15 < (has_hole & recoloured).mean() < 0.35
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    np.testing.assert_array_equal(hole.sum((1, 2)), rows * columns)
    share = hole.sum((1, 2))[has_hole] / (height * width)
    assert 0.005 < share.min() < 0.06 and 0.3 < share.max() < 0.45
    assert (rows[has_hole] > columns[has_hole]).any() and (rows[has_hole] < columns[has_hole]).any()
    untouched = ~has_hole & ~recoloured
    np.testing.assert_array_equal(view[untouched], image[untouched])
    clipped = view * STD + MEAN
    assert clipped.min() > -1e-5 and clipped.max() < 1 + 1e-5


@pytest.fixture(scope="module")
def two_steps():
    """Learner and batch; the state before and after a base update, its metrics, and those of a second one."""
    learner = bau.BalancedMetaBIN(small_net(), optax.sgd(0.05), beta=0.1)
    xb = draw_batch(range(5), 4).replace(key=jax.random.key(7))
    step = jit(learner.base_update)
    before = learner.init(jax.random.key(0), xb.image)
    first, metrics = step(before, xb)
    return learner, xb, before, first, metrics, step(first, xb)[1]


def test_a_base_update_has_every_term(two_steps):
    learner, xb, before, first, metrics, later = two_steps
    strong = disturb(jax.random.fold_in(xb.key, 2), xb.image)
    both = xb.replace(image=jnp.concatenate([xb.image, strong]))
    (feature, embedding, logits), _ = jit(learner.forward)(before, both)
    count = len(xb.pid)
    units = np.asarray(embedding / jnp.linalg.norm(embedding, axis=1, keepdims=True))
    first_view, second_view = jnp.asarray(units[:count]), jnp.asarray(units[count:])
    expected = {
        "base/cross_entropy": losses.cross_entropy(logits[:count], xb.pid),
        "base/triplet": losses.triplet(feature[:count], xb.pid),
        "base/alignment": 1.5 * bau.alignment(first_view, second_view, xb.pid),
        "base/uniformity": (bau.uniformity(first_view) + bau.uniformity(second_view)) / 2,
        "base/domain_uniformity": 0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    assert later["base/domain_uniformity"] < -0.01, "once there are prototypes"
    assert (np.asarray(first.bank["domain"]) == np.arange(CLASSES) // 2).all()
    np.testing.assert_allclose(np.linalg.norm(first.bank["prototype"], axis=1), 1, rtol=1e-6)
    assert jax.tree.structure(first) == jax.tree.structure(before)
    for a, b in zip(jax.tree.leaves(before.rho), jax.tree.leaves(first.rho), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_goes_down_the_sum_of_all_terms(two_steps):
    learner, xb, before, first, *_ = two_steps
    strong = disturb(jax.random.fold_in(xb.key, 2), xb.image)
    both = xb.replace(image=jnp.concatenate([xb.image, strong]))

    def by_hand(params, weight):
        """Without domain uniformity, which is 0 as long as there are no prototypes. weight: of alignment."""
        (feature, embedding, logits), batch_stats = learner.forward(before.replace(params=params), both)
        views = jnp.split(embedding / jnp.linalg.norm(embedding, axis=1, keepdims=True), 2)
        count = len(xb.pid)
        supervised = losses.cross_entropy(logits[:count], xb.pid) + losses.triplet(feature[:count], xb.pid)
        return supervised + weight * bau.alignment(*views, xb.pid) + sum(map(bau.uniformity, views)) / 2, batch_stats

    def after(weight):
        (loss, batch_stats), gradient = jit(jax.value_and_grad(by_hand, has_aux=True))(before.params, weight)
        params = jax.tree.map(lambda value, slope: value - 0.05 * slope, before.params, gradient)
        return loss, jax.tree.leaves((params, batch_stats))

    (loss, expected), (_, other) = after(1.5), after(0.0)
    assert jit(learner.base_loss)(before, xb)[0] == pytest.approx(float(loss), rel=1e-6)
    actual = jax.tree.leaves((first.params, first.batch_stats))
    for value, right in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-7)
    assert max(np.abs(value - wrong).max() for value, wrong in zip(actual, other, strict=True)) > 1e-3


def test_the_terms_move_the_params(two_steps):
    learner, xb, _, first, *_ = two_steps

    @jit
    def gradients(params):
        def loss(params, name):
            return learner.base_loss(first.replace(params=params), xb)[1][0][name]

        return {name: jax.grad(loss)(params, name) for name in ("alignment", "uniformity", "domain_uniformity")}

    for name, gradient in gradients(first.params).items():
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient["backbone"])) > 1e-4, name
        assert np.isfinite([np.sum(leaf) for leaf in jax.tree.leaves(gradient)]).all()
        assert (np.asarray(gradient["classifier"]["kernel"]) == 0).all()
