"""Sizes and types of the nets, and the convolutions written for the CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compile_options import COMPILE_QUICKLY

from metabin_jax import models
from metabin_jax.algorithm import Batch, MetaBIN
from metabin_jax.models.convolution import Conv, DepthwiseConv
from metabin_jax.models.mobilenetv2 import round_to_8
from metabin_jax.models.reid import CLASSIFIER_INITS
from metabin_jax.norm import LAYERS

CLASSES = 7

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)


def shapes_of(model, height=64, width=32, train=False):
    """Outputs and variables, and what every layer returned, without computing anything."""
    init = functools.partial(model.init_with_output, train=train, capture_intermediates=True)
    outputs, variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, height, width, 3)))
    return outputs, variables, variables.pop("intermediates")["backbone"]


def widths(tree):
    return [leaf.shape[-1] for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("name", "layers", "values", "channels"),
    [
        ("mobilenetv2_1.4", 53, 23_822, [44, 22, 33, 44, 89, 134, 224, 448, 1792]),
        ("mobilenetv2_1.0", 53, 17_088, [32, 16, 24, 32, 64, 96, 160, 320, 1280]),
        ("mobilenetv2_standard_1.4", 52, 23_968, [48, 24, 32, 48, 88, 136, 224, 448, 1792]),
        ("resnet50", 53, 26_560, [64, 256, 512, 1024, 2048]),
    ],
)
def test_sizes_of_the_papers_nets(name, layers, values, channels):
    outputs, variables, inside = shapes_of(models.create(name, CLASSES), 256, 128)
    dim = channels[-1]
    assert (len(widths(variables["rho"])), sum(widths(variables["rho"]))) == (layers, values)
    assert sum(widths(variables["batch_stats"])) == 2 * (values + dim)
    assert [x.shape for x in outputs] == [(2, dim), (2, dim), (2, CLASSES)]
    places = [place for place in (*(f"stage{s}_block0" for s in range(2, 9)), "head") if place in inside]
    found = [inside[place]["__call__"][0].shape[-1] for place in ("stem", *places)]
    assert found == channels
    assert inside["__call__"][0].shape == (2, 16, 8, dim)


@pytest.mark.parametrize("norm", LAYERS)
def test_only_layers_with_something_to_balance_have_rho(norm):
    _, variables, _ = shapes_of(models.create("tiny", CLASSES, norm))
    assert ("rho" in variables) == (norm in ("bin", "metabin"))
    if "rho" in variables:
        assert variables["rho"].keys() == {"backbone"}, "BNNeck is plain BN"


def test_rounding_to_8():
    assert [round_to_8(c) for c in (1, 8, 11, 12, 19.9, 20, 22.4, 33.6, 44.8)] == [8, 8, 16, 16, 24, 24, 24, 32, 48]


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("name", ["mobilenetv2_1.0", "resnet50"])
def test_narrow_compute_has_a_narrow_map_and_wide_everything_else(name):
    outputs, variables, inside = shapes_of(models.create(name, CLASSES, dtype=jnp.bfloat16), train=True)
    assert dtypes((outputs, variables)) == {"float32"}
    assert dtypes(inside) == {"bfloat16"}


def test_narrow_compute_leaves_the_state_and_all_metrics_wide():
    model = models.create("tiny", CLASSES, dtype=jnp.bfloat16, stages=())
    metabin = MetaBIN(model, optax.sgd(0.1, momentum=0.9), beta=0.1, first_order=False)
    label = jnp.zeros(8, jnp.int32)
    batch = Batch(jnp.zeros((8, 32, 16, 3)), label, label)
    state = jax.eval_shape(metabin.init, jax.random.key(0), batch.image)
    after, metrics = jax.eval_shape(metabin.train_step, state, batch, batch, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert dtypes(state.replace(step=state.params)) == dtypes(metrics) == {"float32"}


@pytest.mark.parametrize(
    ("name", "instance", "batch"),
    [
        ("mobilenetv2_1.0", ("stem", "stage2", "stage3", "stage4", "stage5", "stage6"), ("stage7", "stage8", "head")),
        ("resnet50", ("stem", "stage2", "stage3"), ("stage4", "stage5")),
        ("tiny", ("stem", "stage2", "stage3"), ("stage4", "head")),
    ],
)
def test_dual_norm_has_instance_norm_in_the_shallow_stages(name, instance, batch):
    _, variables, _ = shapes_of(models.create(name, CLASSES, "dualnorm"))
    assert {key.split("_")[0] for key in variables["batch_stats"]["backbone"]} == set(batch)
    assert {key.split("_")[0] for key in variables["params"]["backbone"]} == {*instance, *batch}


def test_neither_neck_nor_classifier_has_a_bias():
    _, variables, _ = shapes_of(models.create("tiny", CLASSES))
    params = variables["params"]
    assert (params["bnneck"].keys(), params["classifier"].keys()) == ({"scale"}, {"kernel"})


def test_kernels_start_as_documented():
    """He by fan-out: sqrt(2 / (k * k * out)), one output per depthwise kernel; the classifier in two ways."""

    @jit
    def start(key, image_NHWC):
        full = Conv(300, 3).init(key, image_NHWC)
        depthwise = DepthwiseConv().init(key, image_NHWC)
        classifiers = {name: init(key, (64, 300)) for name, init in CLASSIFIER_INITS.items()}
        return full["params"]["kernel"], depthwise["params"]["kernel"], classifiers

    full, depthwise, classifiers = start(jax.random.key(0), jnp.zeros((1, 4, 4, 256)))
    assert full.std() == pytest.approx(np.sqrt(2 / (9 * 300)), rel=0.03)
    assert depthwise.std() == pytest.approx(np.sqrt(2 / 9), rel=0.03)
    assert classifiers["normal"].std() == pytest.approx(0.001, rel=0.03)
    assert np.abs(classifiers["uniform"]).max() == pytest.approx(1 / 8, rel=0.01)
    assert classifiers["uniform"].std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet18"}, "model must be mobilenetv2_W .* got 'resnet18'"),
        ({"name": "mobilenetv2_"}, "model must be .* got 'mobilenetv2_'"),
        ({"name": "mobilenetv2_0"}, "a width W of 0.1 or more, .* got 'mobilenetv2_0'"),
        ({"name": "osnet_x0_25", "mixes_styles": True}, "the net osnet_x0_25 has no mixes_styles, which this needs: "),
        ({"name": "tiny", "norm": "ibn"}, "norm must be one of .* got 'ibn'"),
        ({"name": "tiny", "classifier_init": "zeros"}, "classifier_init must be one of normal, uniform; got 'zeros'"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(num_classes=CLASSES, **arguments)


def test_grey_images_are_refused():
    with pytest.raises(AssertionError):
        jax.eval_shape(models.create("tiny", CLASSES).init, jax.random.key(0), jnp.zeros((2, 32, 16, 1)), False)


@pytest.mark.parametrize("name", ["tiny", "resnet50"])
def test_no_images_have_no_embeddings(name):
    model = models.create(name, CLASSES)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 32, 3)))
    embed = functools.partial(model.apply, train=False)
    none, one = (jax.eval_shape(embed, variables, jnp.zeros((number, 64, 32, 3)))[1].shape for number in (0, 1))
    assert none == (0, *one[1:])
