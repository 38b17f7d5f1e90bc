"""What the comparison with PyTorch (test_twin_layers.py) leaves open."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_options import COMPILE_QUICKLY

from metabin_jax import norm

CHANNELS = 6
WITH_BATCH = {
    "bn": norm.BatchNorm,
    "half": norm.HalfNorm,
    "bin": norm.SharedBatchInstanceNorm,
    "metabin": norm.BatchInstanceNorm,
}
LAYERS = WITH_BATCH | {"in": norm.InstanceNorm}

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)
every_layer = pytest.mark.parametrize("layer", [pytest.param(layer(), id=name) for name, layer in LAYERS.items()])
batch_layers = pytest.mark.parametrize("layer", [pytest.param(layer(), id=name) for name, layer in WITH_BATCH.items()])

MOMENTS = (norm.instance_moments, norm._moments_about_mean, norm._moments_about_row)  # the latter: CPU, others
every_form = pytest.mark.parametrize("moments", MOMENTS)


def draw_x(shape, dtype=np.float32, mean=3):
    return np.random.default_rng([2]).normal(mean, 2, shape).astype(dtype)


def random_variables(layer):
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((2, 1, 1, CHANNELS)), train=False))
    rng = np.random.default_rng([3])
    return jax.tree.map(lambda leaf: rng.uniform(0.3, 0.7, leaf.shape).astype(np.float32), shapes)


def leaves(tree, *names):
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if path[-1].key in names]


@every_layer
def test_start_whatever_the_images(layer):
    """rho at 1, scales 1, shifts 0; initialising in training mode is no update of the running moments."""
    init = jit(functools.partial(layer.init, train=True))
    variables = init(jax.random.key(0), draw_x((5, 4, 3, CHANNELS)))
    ones = leaves(variables, "rho", "var", "scale", "bn_scale", "in_scale")
    zeros = leaves(variables, "mean", "bias", "bn_bias", "in_bias")
    assert len(ones) + len(zeros) == len(jax.tree.leaves(variables))
    assert all(leaf.dtype == jnp.float32 for leaf in ones + zeros)
    assert all((leaf == 1).all() for leaf in ones) and all((leaf == 0).all() for leaf in zeros)


@every_layer
def test_in_evaluation_an_image_does_not_see_its_batch(layer):
    @functools.partial(jit, static_argnames="train")
    def alone_and_together(variables, x_NHWC, train):
        def apply(x_NHWC):
            return layer.apply(variables, x_NHWC, train=train, mutable=["batch_stats"])[0]

        return jnp.concatenate([apply(x_NHWC[:1]), apply(x_NHWC[1:])]), apply(x_NHWC)

    variables, x_NHWC = random_variables(layer), draw_x((3, 4, 3, CHANNELS))
    np.testing.assert_allclose(*alone_and_together(variables, x_NHWC, train=False), rtol=1e-6, atol=1e-6)
    alone, together = alone_and_together(variables, x_NHWC, train=True)
    assert (np.abs(alone - together).max() > 0.05) == (not isinstance(layer, norm.InstanceNorm))


@batch_layers
def test_one_value_per_channel_has_no_batch_statistics(layer):
    variables = random_variables(layer)

    def shape(train, images):
        x_NHWC = jnp.zeros((images, 1, 1, CHANNELS))
        return jax.eval_shape(lambda: layer.apply(variables, x_NHWC, train=train, mutable=["batch_stats"])[0]).shape

    with pytest.raises(ValueError, match=r"2 values per channel or more, got x of shape \(1, 1, 1, [36]\)"):
        shape(train=True, images=1)
    assert shape(train=False, images=1) == (1, 1, 1, CHANNELS)
    assert shape(train=True, images=2) == (2, 1, 1, CHANNELS)


@every_layer
def test_narrow_images_have_float32_statistics(layer):
    x_NHWC = draw_x((8, 16, 8, CHANNELS), jnp.bfloat16)
    train = jit(lambda variables, x_NHWC: layer.apply(variables, x_NHWC, train=True, mutable=["batch_stats"]))
    variables = random_variables(layer)
    y_NHWC, updated = train(variables, x_NHWC)
    wide_NHWC, _ = train(variables, x_NHWC.astype(np.float32))
    assert (y_NHWC.dtype, wide_NHWC.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(np.asarray(y_NHWC, np.float32), wide_NHWC, rtol=2**-7, atol=1e-6)
    for name, of_x in (("mean", np.mean), ("var", functools.partial(np.var, ddof=1))):
        for old, new in zip(leaves(variables, name), leaves(updated, name), strict=True):
            assert new.dtype == jnp.float32
            moment_C = of_x(x_NHWC[..., : new.size].astype(np.float64), axis=(0, 1, 2))
            expected, narrow = (0.9 * old + 0.1 * m for m in (moment_C, moment_C.astype(jnp.bfloat16)))
            np.testing.assert_allclose(new, expected, rtol=1e-6)
            assert np.abs(narrow / expected - 1).max() > 1e-4


def test_dtype_is_that_of_the_output_only():
    layer = norm.create("metabin", jnp.bfloat16)(0.5, "norm")
    init = functools.partial(layer.init_with_output, train=False)
    y_NHWC, variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 4, 3, CHANNELS)))
    assert y_NHWC.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@every_form
def test_moments_do_not_cancel_far_from_zero(moments):
    x_NHWC = draw_x((3, 8, 4, CHANNELS), mean=4000)
    expected = x_NHWC.astype(np.float64).var((1, 2))
    naive = np.square(x_NHWC).mean((1, 2)) - np.square(x_NHWC.mean((1, 2)))
    np.testing.assert_allclose(jit(moments)(x_NHWC)[1], expected, rtol=1e-5)
    assert np.abs(naive / expected - 1).max() > 1e-2


@every_form
def test_moments_about_the_worst_row(moments):
    """The middle row, which they are taken about, as the only one that is not like the others."""
    x_NHWC = draw_x((3, 32, 16, CHANNELS))
    x_NHWC[:, 16] = 1000
    wide = x_NHWC.astype(np.float64)
    mean_NC, var_NC = jit(moments)(x_NHWC)
    np.testing.assert_allclose(mean_NC, wide.mean((1, 2)), rtol=3e-5)
    np.testing.assert_allclose(var_NC, wide.var((1, 2)), rtol=3e-5)


@every_form
def test_derivatives_of_the_variance(moments):
    """The variance is quadratic in x: gradient 2 (x - mean) / n, Hessian 2 (I - 1 / n) / n."""
    x_P = draw_x((6,), np.float64)

    def variance(x_P):
        return moments(x_P.reshape(1, 3, 2, 1))[1][0, 0]

    def cut_off(x_P):
        """The same value without the mean's part of the derivatives."""
        return jnp.square(x_P - jax.lax.stop_gradient(x_P.mean())).mean()

    @jit
    def derivatives(x_P):
        modes = (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f)))
        return jax.grad(variance)(x_P), [[mode(f)(x_P) for f in (variance, cut_off)] for mode in modes]

    with jax.enable_x64(True):
        gradient, hessians = derivatives(x_P)
    np.testing.assert_allclose(gradient, 2 * (x_P - x_P.mean()) / 6, rtol=1e-12)
    expected = 2 * (np.eye(6) - 1 / 6) / 6
    for actual, wrong in hessians:
        np.testing.assert_allclose(actual, expected, atol=1e-14)
        assert np.abs(np.asarray(wrong) - expected).max() > 0.05


@every_layer
@pytest.mark.parametrize("shape", [(4, CHANNELS), (4, 3, CHANNELS), (1, 4, 4, 3, CHANNELS)])
def test_x_of_another_rank_is_refused(layer, shape):
    with pytest.raises(AssertionError, match=r"a norm layer takes \[N, H, W, C\]"):
        jax.eval_shape(functools.partial(layer.init, train=False), jax.random.key(0), jnp.zeros(shape))


@every_layer
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_])
def test_x_of_integers_is_refused(layer, dtype):
    with pytest.raises(TypeError, match="a norm layer takes floats, not "):
        jax.eval_shape(
            functools.partial(layer.init, train=False), jax.random.key(0), jnp.zeros((2, 4, 4, CHANNELS), dtype)
        )


@every_layer
def test_the_affine_form_is_the_layer_in_evaluation_mode(layer):
    variables, x_NHWC = random_variables(layer), draw_x((3, 4, 3, CHANNELS))
    affine = jit(lambda variables: layer.apply(variables, CHANNELS, method="affine"))
    batch_C, instance_C, shift_C = jax.device_get(affine(variables))
    assert (instance_C is None) == isinstance(layer, norm.BatchNorm)
    standardised = (x_NHWC - x_NHWC.mean((1, 2), keepdims=True)) / np.sqrt(x_NHWC.var((1, 2), keepdims=True) + 1e-5)
    expected = batch_C * x_NHWC + (0 if instance_C is None else instance_C * standardised) + shift_C
    evaluate = jit(functools.partial(layer.apply, train=False))
    np.testing.assert_allclose(evaluate(variables, x_NHWC), expected, rtol=1e-5, atol=1e-5)
    changed = jax.tree.map(lambda leaf: leaf + 0.01, variables)
    assert np.abs(evaluate(changed, x_NHWC) - expected).max() > 1e-3


@pytest.mark.parametrize("train", [True, False])
def test_the_halves_are_the_affine_form_of_the_whole(train):
    """HalfNorm computes its coefficients half by half; other layers compute them from `affine`."""
    layer, x_NHWC = norm.HalfNorm(), draw_x((3, 4, 3, CHANNELS))
    variables = random_variables(layer)

    @functools.partial(jit, static_argnums=1)
    def coefficients(x_NHWC, method):
        return layer.apply(variables, x_NHWC, train, method=method, mutable=["batch_stats"])

    halves, whole = coefficients(x_NHWC, "coefficients"), coefficients(x_NHWC, norm.Norm.coefficients)
    chex.assert_trees_all_close(halves, whole, rtol=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(halves, coefficients(x_NHWC[..., ::-1], norm.Norm.coefficients), rtol=1e-5)


def test_unknown_layer_is_named():
    with pytest.raises(ValueError, match=r"norm must be one of bn, in, half, dualnorm, ibn_a, bin, metabin; got 'ibn'"):
        norm.create("ibn")


def test_dual_norm_is_instance_norm_up_to_two_thirds():
    place = norm.create("dualnorm")
    kinds = [type(place(stage / 9, "norm")) for stage in range(1, 10)]
    assert kinds == [norm.InstanceNorm] * 6 + [norm.BatchNorm] * 3
