"""Files of weights become the right net without being told which: features equal those of a PyTorch twin."""

import functools

import jax
import jax.numpy as jnp
import pytest
from test_torch_weights import compare, picture, projects, randomise, run_ours, run_theirs

from metabin_jax import models
from metabin_jax.models.weights.recognition import recognise
from metabin_jax.runtime.errors import UserError

reid_nets = pytest.importorskip("torch_reid_nets")

OSNETS = {"osnet_x1_0": 1.0, "osnet_x0_75": 0.75, "osnet_x0_5": 0.5, "osnet_x0_25": 0.25}
FILES = {
    **{name: functools.partial(reid_nets.OSNet, width) for name, width in OSNETS.items()},
    "osnet_ain_x1_0": functools.partial(reid_nets.OSNet, ain=True),
    "torchreid's resnet50": reid_nets.torchreid_resnet,
    "torchreid's resnet50_ibn_a": functools.partial(reid_nets.torchreid_resnet, ibn=True),
    "torchvision's resnet50": projects.ResNet,
    "released resnet50": projects.released_resnet,
    **{f"mobilenetv2_{width}": functools.partial(projects.Torchreid, width) for width in (1.0, 1.4)},
    **{f"released {width}": functools.partial(projects.released_mobilenet, width) for width in (0.5, 1.4)},
    **{f"standard {width}": functools.partial(projects.Torchvision, width) for width in (0.35, 1.0, 1.4)},
    "timm": projects.Timm,
    "tonylins": functools.partial(projects.Torchvision, 0.75, flat=True),
}
PLAIN = ("bn", False, {})
EXPECTED = {
    **{name: (name, *PLAIN) for name in OSNETS},
    "osnet_ain_x1_0": ("osnet_ain_x1_0", *PLAIN),
    "torchreid's resnet50": ("resnet50", "bn", False, {"last_stride": 2}),
    "torchreid's resnet50_ibn_a": ("resnet50", "ibn_a", False, {"last_stride": 2}),
    "torchvision's resnet50": ("resnet50", *PLAIN),
    "released resnet50": ("resnet50", "metabin", True, {}),
    **{name: (name, *PLAIN) for name in ("mobilenetv2_1.0", "mobilenetv2_1.4")},
    **{f"released {width}": (f"mobilenetv2_{width}", "metabin", True, {}) for width in (0.5, 1.4)},
    **{f"standard {width}": (f"mobilenetv2_standard_{width}", *PLAIN) for width in (0.35, 1.0, 1.4)},
    "timm": ("mobilenetv2_standard_1.0", *PLAIN),
    "tonylins": ("mobilenetv2_standard_0.75", *PLAIN),
}


def loaded(state):
    """The model of a state dict and its variables; nothing is left over on either side."""
    net, arrays = recognise(state)
    model = models.create(net.name, net.num_classes, net.norm, neck=net.neck, **net.settings)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    variables, report = models.load_torch(arrays, shapes, may_differ=())
    assert report.kept == report.identity == ()
    assert all(
        name.endswith(("num_batches_tracked", "pixel_mean", "pixel_std", "_norm.bias")) for name in report.ignored
    )
    return model, variables


@pytest.mark.parametrize("name", FILES)
def test_architecture_width_norm_and_head_are_read_from_names_and_shapes(name):
    state = FILES[name]().state_dict()
    net, _ = recognise(without_bias(state))
    assert (net.name, net.norm, net.neck, net.settings) == EXPECTED[name]
    assert net.num_classes == projects.CLASSES
    headless = {
        key: value for key, value in state.items() if not key.startswith(("classifier", "fc.weight", "fc.bias"))
    }
    if "classifier.weight" in state:
        assert recognise(headless)[0].num_classes == 1


def without_bias(state):
    """Our classifiers have none; the embedding does not depend on it."""
    names = ("classifier.bias", "classifier.1.bias", "fc.bias")
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    "name", ["osnet_x0_25", "osnet_ain_x1_0", "torchreid's resnet50", "torchreid's resnet50_ibn_a", "released 0.5"]
)
def test_features_equal_those_of_torch(name):
    net, image = randomise(FILES[name]()), picture()
    state = without_bias(net.state_dict())
    model, variables = loaded(state)
    theirs = run_theirs(net, image, train=False)
    expected = theirs[1] if isinstance(theirs, tuple) else theirs
    assert compare.distance(run_ours(model, variables, image, False)[1], expected) < 1e-6
    # Negative controls: two layers of one shape swapped, and a norm of the wrong kind.
    swapped = dict(state)
    first, second = TWINS[name.split()[0]]
    swapped[first], swapped[second] = state[second], state[first]
    assert compare.distance(run_ours(*loaded(swapped), image, False)[1], expected) > 1e-3


TWINS = {
    "osnet_x0_25": ("conv3.1.conv2c.0.conv1.weight", "conv3.1.conv2c.2.conv1.weight"),
    "osnet_ain_x1_0": ("conv3.1.conv2.2.layers.0.conv1.weight", "conv3.1.conv2.2.layers.2.conv1.weight"),
    "torchreid's": ("layer3.1.conv1.weight", "layer3.2.conv1.weight"),
    "released": ("backbone.layer3.1.conv1.bn.gate", "backbone.layer3.1.dwconv2.bn.gate"),
}


def test_the_last_stride_is_seen():
    net, image = randomise(reid_nets.torchreid_resnet()), picture()
    state = without_bias(net.state_dict())
    _, variables = loaded(state)
    model = models.create("resnet50", projects.CLASSES, "bn", neck=False)
    expected = run_theirs(net, image, train=False)
    assert compare.distance(run_ours(model, variables, image, False)[1], expected) > 1e-3


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_prefixes_are_taken_off(prefix):
    state = without_bias(reid_nets.OSNet(0.25).state_dict())
    net, arrays = recognise({"state_dict": {f"{prefix}{name}": value for name, value in state.items()}})
    assert net.name == "osnet_x0_25" and arrays.keys() == state.keys()
    mixed = {f"module.{name}" if number else name: value for number, (name, value) in enumerate(state.items())}
    with pytest.raises(UserError, match=r"of a size that is not supported|names of no known project"):
        recognise(mixed)


def test_a_net_of_another_size_is_refused_in_a_sentence():
    state = reid_nets.torchreid_resnet().state_dict()
    deeper = state | {f"layer3.6.{name[9:]}": value for name, value in state.items() if name.startswith("layer3.5.")}
    with pytest.raises(UserError, match="the state dict holds a ResNet-50 of a size that is not supported"):
        recognise(deeper)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("osnet_x0_25", "resnet50"), ("mobilenetv2_1.4", "mobilenetv2_1.0"), ("timm", "mobilenetv2_1.4")],
)
def test_the_model_that_fits_is_named(name, asked):
    model = models.create(asked, 5)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    with pytest.raises(UserError, match=rf"or the model that it fits, --config\.model\.name={EXPECTED[name][0]}$"):
        models.load_torch(FILES[name]().state_dict(), shapes)


def test_metabin_replaces_the_batch_norms_of_osnet_and_leaves_its_instance_norms():
    model = models.create("osnet_ain_x1_0", 5)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    params, rho = shapes["params"]["backbone"], shapes["rho"]["backbone"]
    assert set(params["stem_norm"]) == set(params["stage2_block0"]["instance_norm"]) == {"scale", "bias"}
    assert "stem_norm" not in rho and "instance_norm" not in rho["stage2_block0"]
    assert set(rho["stage2_block0"]["stream4_light3"]) == {"norm"}
    assert set(params["fc_norm"]) == {"scale", "bias"} and "bnneck" in shapes["params"]
