"""MixStyle against NumPy, what it draws against SciPy, where the nets have it, and a training that is resumed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_options import COMPILE_QUICKLY
from scipy import stats
from tiny_run import killed_after, rows, tiny_config

from metabin_jax import models
from metabin_jax.models.mixstyle import MixStyle, mix_styles
from metabin_jax.models.mobilenetv2 import Stage
from metabin_jax.norm import BatchNorm
from metabin_jax.training import build, evaluate, train

IMAGES = 6


def draw(shape=(IMAGES, 5, 3, 4), seed=0):
    """Maps whose images and channels differ in mean and deviation."""
    rng = np.random.default_rng([seed])
    style = (shape[0], 1, 1, shape[3])
    return rng.normal(size=shape) * rng.uniform(0.5, 2, style) + rng.normal(size=style)


def numpy_twin(x_NHWC, keep_N, other_N):
    """One image and channel at a time, with PyTorch's unbiased variance, as the authors have it."""
    y_NHWC = np.empty_like(x_NHWC)

    def style(image, channel):
        values = x_NHWC[image, :, :, channel]
        return values.mean(), np.sqrt(values.var(ddof=1) + 1e-6)

    for n in range(len(x_NHWC)):
        for c in range(x_NHWC.shape[-1]):
            (mean, std), (other_mean, other_std) = style(n, c), style(other_N[n], c)
            normalised = (x_NHWC[n, :, :, c] - mean) / std
            new_std = keep_N[n] * std + (1 - keep_N[n]) * other_std
            y_NHWC[n, :, :, c] = normalised * new_std + keep_N[n] * mean + (1 - keep_N[n]) * other_mean
    return y_NHWC


def test_mixing_is_that_of_numpy():
    x, keep, other = draw(), np.array([0.0, 0.2, 0.5, 0.9, 1.0, 0.7]), np.array([3, 0, 5, 1, 2, 4])
    with jax.enable_x64(True):
        actual = np.asarray(mix_styles(jnp.asarray(x), jnp.asarray(keep), jnp.asarray(other)))
    # The authors' unbiased variance is a factor of both styles, which leaves only its share of epsilon.
    np.testing.assert_allclose(actual, numpy_twin(x, keep, other), atol=1e-6)
    np.testing.assert_array_equal(actual[4], x[4])
    for wrong in (numpy_twin(x, 1 - keep, other), numpy_twin(x, keep, np.argsort(other)), x):
        assert np.abs(actual - wrong).max() > 0.1


def test_no_gradient_passes_through_the_styles():
    """So x only gets the cotangent times the new deviation over the old one."""
    x, keep, other = draw(), np.full(IMAGES, 0.3), np.roll(np.arange(IMAGES), 1)
    cotangent = np.random.default_rng([1]).normal(size=x.shape)
    with jax.enable_x64(True):
        _, pull = jax.vjp(lambda x: mix_styles(x, jnp.asarray(keep), jnp.asarray(other)), jnp.asarray(x))
        gradient = np.asarray(pull(jnp.asarray(cotangent))[0])
    std = np.sqrt(x.var((1, 2), keepdims=True) + 1e-6)
    np.testing.assert_allclose(gradient, cotangent * (0.3 * std + 0.7 * std[other]) / std, rtol=1e-10)


@pytest.fixture(scope="module")
def drawn():
    """Per key and image, of the layer itself: what share of its style it kept, and whose it took."""
    x = draw(seed=3).astype(np.float32)
    outputs = jax.jit(jax.vmap(lambda key: MixStyle().apply({}, x, train=True, rngs={"noise": key})))
    y = np.asarray(outputs(jax.random.split(jax.random.key(0), 300)), np.float64)
    style, new = (np.concatenate([a.mean((-3, -2)), a.std((-3, -2))], -1) for a in (x.astype(np.float64), y))
    # new = own + (1 - keep) * (other - own): the share by least squares for each candidate, the other by what is left.
    step = style[None] - style[:, None]
    moved = new - style
    share = np.einsum("knd,nmd->knm", moved, step) / np.maximum((step**2).sum(-1), 1e-12)
    left = ((moved[:, :, None] - share[..., None] * step) ** 2).sum(-1)
    other = left.argmin(-1)
    keep = 1 - np.take_along_axis(share, other[..., None], -1)[..., 0]
    assert np.take_along_axis(left, other[..., None], -1).max() < 1e-6
    mixed = np.abs(y - x).max((1, 2, 3, 4)) > 0
    return keep, other, mixed


def test_half_of_the_batches_are_mixed_by_shares_of_beta(drawn):
    keep, _, mixed = drawn
    assert 0.4 < mixed.mean() < 0.6
    # Shares near the ends cannot be told from rounding, nor an image that met itself from one that kept all.
    low, high = 1e-3, 1 - 1e-3
    shown = keep[mixed][(keep[mixed] > low) & (keep[mixed] < high)]
    assert len(shown) > 300

    def fits(alpha):
        cdf = stats.beta(alpha, alpha).cdf
        return stats.kstest(shown, lambda share: (cdf(share) - cdf(low)) / (cdf(high) - cdf(low))).pvalue

    assert fits(0.1) > 0.01 > fits(0.3)


def test_every_image_may_meet_every_other_but_none_two(drawn):
    keep, other, mixed = drawn
    moved = np.abs(1 - keep) > 1e-3
    pairs = {
        (n, int(m)) for row, far in zip(other[mixed], moved[mixed], strict=True) for n, m in enumerate(row) if far[n]
    }
    assert pairs == {(n, m) for n in range(IMAGES) for m in range(IMAGES) if n != m}
    for row, far in zip(other[mixed], moved[mixed], strict=True):
        assert len(set(row[far])) == far.sum()


def test_evaluation_draws_nothing_and_changes_nothing():
    x = jnp.asarray(draw())
    assert MixStyle().apply({}, x, train=False) is x
    kind = {"stages": (Stage(1, 4, 1, 1),), "stem": 4, "head": 8}
    plain, mixing = (models.create("tiny", 3, "bn", mixes_styles=mixes, **kind) for mixes in (False, True))
    image = jnp.asarray(np.random.default_rng([4]).normal(size=(4, 16, 8, 3)), jnp.float32)

    @functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)
    def run(keys):
        variables = plain.init(jax.random.key(0), image, train=False)

        def trained(key):
            return mixing.apply(variables, image, train=True, mutable=["batch_stats"], rngs={"noise": key})[0][0]

        return [net.apply(variables, image, train=False)[0] for net in (plain, mixing)], jax.vmap(trained)(keys)

    (expected, actual), trained = run(jax.random.split(jax.random.key(1), 4))
    np.testing.assert_array_equal(actual, expected)
    assert len({np.asarray(feature).tobytes() for feature in trained}) > 1, "training must differ"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", {"stage2_mixstyle": (2, 16, 8, 256), "stage3_mixstyle": (2, 8, 4, 512)}),
        ("mobilenetv2_1.0", {"stage2_mixstyle": (2, 32, 16, 16), "stage3_mixstyle": (2, 16, 8, 24)}),
    ],
)
def test_the_nets_mix_after_their_first_two_stages(name, expected):
    seen = {}

    def watch(next_function, args, kwargs, context):
        if isinstance(context.module, MixStyle):
            seen[context.module.name] = args[0].shape
        return next_function(*args, **kwargs)

    for mixes in (False, True):
        assert not seen
        with nn.intercept_methods(watch):
            net = models.create(name, 2, "bn", mixes_styles=mixes)
            jax.eval_shape(lambda net=net: net.init(jax.random.key(0), jnp.zeros((2, 64, 32, 3)), train=False))
    assert seen == expected


class StyleNet(nn.Module):
    """As models.ReID, with MixStyle and little else."""

    num_classes: int

    @nn.compact
    def __call__(self, image_NHWC, train):
        coarse_NHWC = nn.Dense(8, use_bias=False, name="stem")(nn.avg_pool(image_NHWC, (8, 8), (8, 8)))
        map_NHWC = BatchNorm(name="norm")(MixStyle(name="mixstyle")(coarse_NHWC, train), train)
        feature_ND = nn.relu(map_NHWC).reshape(len(image_NHWC), -1)
        return feature_ND, feature_ND, nn.Dense(self.num_classes, use_bias=False, name="classifier")(feature_ND)


def test_what_is_drawn_depends_on_seed_and_step_alone(folder, tmp_path, monkeypatch):
    """A run killed within an epoch goes on with the same draws; without a key, or by another seed, they differ."""
    for module in (build, evaluate):
        monkeypatch.setattr(module, "build_model", lambda config, num_ids: StyleNet(num_ids))
    config = tiny_config(folder)
    config.method = "mixstyle"

    def losses(name):
        train.train(config, tmp_path / name)
        return [row["base/triplet"] for row in rows(tmp_path / name)]

    straight = losses("straight")
    with killed_after(5):
        losses("resumed")
    assert losses("resumed") == straight
    with monkeypatch.context() as patch:
        patch.setattr(MixStyle, "__call__", lambda self, x_NHWC, train: x_NHWC)
        assert losses("unmixed") != straight
