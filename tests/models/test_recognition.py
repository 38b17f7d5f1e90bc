"""Files of weights become the right net without being told which: features equal those of a PyTorch twin."""

import functools

import jax
import jax.numpy as jnp
import pytest
from test_torch_weights import compare, picture, projects, randomise, run_ours, run_theirs

from metabin_jax import models
from metabin_jax.models.mobilenetv2 import STAGES
from metabin_jax.models.weights.recognition import recognise
from metabin_jax.runtime.errors import UserError

torch = pytest.importorskip("torch", reason="the projects' nets are in PyTorch")
reid_nets = pytest.importorskip("torch_reid_nets")


def dual_norm():
    """IN in the first six layers of nine."""
    net, shallow = (projects.released_mobilenet(0.5, norm=n) for n in (torch.nn.BatchNorm2d, projects.instance_norm))
    for layer in range(1, 7):
        setattr(net.backbone, f"layer{layer}", getattr(shallow.backbone, f"layer{layer}"))
    return net


OSNETS = {"osnet_x1_0": 1.0, "osnet_x0_75": 0.75, "osnet_x0_5": 0.5, "osnet_x0_25": 0.25}
FILES = {
    **{name: functools.partial(reid_nets.OSNet, width) for name, width in OSNETS.items()},
    **{
        name.replace("osnet", "osnet_ain"): functools.partial(reid_nets.OSNet, width, ain=True)
        for name, width in OSNETS.items()
    },
    "osnet_ibn_x1_0": functools.partial(reid_nets.OSNet, ibn=True),
    "torchreid's resnet50": reid_nets.torchreid_resnet,
    "torchreid's resnet50_ibn_a": functools.partial(reid_nets.torchreid_resnet, ibn=True),
    "torchvision's resnet50": projects.ResNet,
    "released resnet50": projects.released_resnet,
    "CION": reid_nets.Cion,
    "CION, fine-tuned": reid_nets.FineTuned,
    **{f"mobilenetv2_{width}": functools.partial(reid_nets.torchreid_mobilenet, width) for width in (0.5, 1.0, 1.4)},
    **{f"released {width}": functools.partial(projects.released_mobilenet, width) for width in (0.5, 1.4)},
    **{f"standard {width}": functools.partial(projects.Torchvision, width) for width in (0.35, 1.0, 1.4)},
    "timm": projects.Timm,
    "tonylins": functools.partial(projects.Torchvision, 0.75, flat=True),
}
FILES |= {
    f"released {norm}": functools.partial(projects.released_mobilenet, 0.5, norm=layer)
    for norm, layer in (
        ("bn", torch.nn.BatchNorm2d), ("in", projects.instance_norm),
        ("half", projects.Half), ("bin", projects.SharedGated),
    )
}  # fmt: skip
FILES["released dualnorm"] = dual_norm
PLAIN = ("bn", False, {})
# Strides leave no trace in a file: of torchreid's code.
TORCHREID_STAGES = tuple(stage._replace(stride=2) if stage.features == 160 else stage for stage in STAGES)
EXPECTED = {
    **{name: (name, *PLAIN) for name in OSNETS},
    **{name: (name, *PLAIN) for name in FILES if name.startswith(("osnet_ain", "osnet_ibn"))},
    "torchreid's resnet50": ("resnet50", "bn", False, {"last_stride": 2}),
    "torchreid's resnet50_ibn_a": ("resnet50", "ibn_a", False, {"last_stride": 2}),
    "torchvision's resnet50": ("resnet50", *PLAIN),
    "released resnet50": ("resnet50", "metabin", True, {}),
    "CION": ("resnet50", "ibn_a", False, {}),
    "CION, fine-tuned": ("resnet50", "ibn_a", True, {}),
    **{
        f"mobilenetv2_{width}": (f"mobilenetv2_{width}", "bn", False, {"stages": TORCHREID_STAGES})
        for width in (0.5, 1.0, 1.4)
    },
    **{f"released {norm}": ("mobilenetv2_0.5", norm, True, {}) for norm in ("bn", "in", "half", "bin", "dualnorm")},
    **{f"released {width}": (f"mobilenetv2_{width}", "metabin", True, {}) for width in (0.5, 1.4)},
    **{f"standard {width}": (f"mobilenetv2_standard_{width}", *PLAIN) for width in (0.35, 1.0, 1.4)},
    "timm": ("mobilenetv2_standard_1.0", *PLAIN),
    "tonylins": ("mobilenetv2_standard_0.75", *PLAIN),
}


def loaded(file_or_state):
    """The model of a file and its variables; nothing is left over on either side."""
    net, arrays = recognise(file_or_state)
    model = models.create(net.name, net.num_classes, net.norm, neck=net.neck, **net.settings)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    variables, report = models.load_torch(arrays, shapes, may_differ=())
    assert report.kept == report.identity == ()
    assert all(
        name.endswith(("num_batches_tracked", "pixel_mean", "pixel_std", "_norm.bias", "bottleneck.bias"))
        for name in report.ignored
    )
    return model, variables


@pytest.mark.parametrize("name", FILES)
def test_architecture_width_norm_and_head_are_read_from_names_and_shapes(name):
    state = FILES[name]().state_dict()
    net, _ = recognise(without_bias(state))
    assert (net.name, net.norm, net.neck, net.settings) == EXPECTED[name]
    assert net.num_classes == (1 if name == "CION" else projects.CLASSES)
    headless = {
        key: value for key, value in state.items() if not key.startswith(("classifier", "fc.weight", "fc.bias"))
    }
    if "classifier.weight" in state:
        assert recognise(headless)[0].num_classes == 1


def without_bias(state):
    """Our classifiers have none; the embedding does not depend on it."""
    names = ("classifier.bias", "classifier.1.bias", "fc.bias")
    return {name: value for name, value in state.items() if name not in names}


# Of a file: two layers of one shape.
TWINS = {
    "osnet_x0_25": ("conv3.1.conv2c.0.conv1.weight", "conv3.1.conv2c.2.conv1.weight"),
    "osnet_ibn_x1_0": ("conv3.1.conv2c.0.conv1.weight", "conv3.1.conv2c.2.conv1.weight"),
    "osnet_ain_x1_0": ("conv3.1.conv2.2.layers.0.conv1.weight", "conv3.1.conv2.2.layers.2.conv1.weight"),
    "torchreid's resnet50": ("layer3.1.conv1.weight", "layer3.2.conv1.weight"),
    "torchreid's resnet50_ibn_a": ("layer3.1.conv1.weight", "layer3.2.conv1.weight"),
    "CION, fine-tuned": ("base.layer3.1.conv1.weight", "base.layer3.2.conv1.weight"),
    "mobilenetv2_0.5": ("conv5.1.conv1.conv.weight", "conv5.2.conv1.conv.weight"),
    "released 0.5": ("backbone.layer3.1.conv1.bn.gate", "backbone.layer3.1.dwconv2.bn.gate"),
    "released half": ("backbone.layer3.1.conv1.bn.ins_n.bias", "backbone.layer3.1.dwconv2.bn.ins_n.bias"),
    "released bin": ("backbone.layer3.1.conv1.bn.gate", "backbone.layer3.1.dwconv2.bn.gate"),
    "released dualnorm": ("backbone.layer3.1.conv1.bn.bias", "backbone.layer3.1.dwconv2.bn.bias"),
}


def embedding_of_theirs(net, image):
    found = run_theirs(net, image, train=False)
    return found[1] if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", TWINS)
def test_features_of_a_file_equal_those_of_torch(name, tmp_path):
    net, image = randomise(FILES[name]()), picture()
    state = without_bias(net.state_dict())
    expected = embedding_of_theirs(net, image)
    torch.save(state, tmp_path / "x.pth")
    assert compare.distance(run_ours(*loaded(tmp_path / "x.pth"), image, False)[1], expected) < 1e-6
    first, second = TWINS[name]
    swapped = state | {first: state[second], second: state[first]}
    assert compare.distance(run_ours(*loaded(swapped), image, False)[1], expected) > 1e-3


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("osnet_ain_x0_25", "conv4.0.IN"),
        ("osnet_ain_x0_25", "conv1.bn"),
        ("torchreid's resnet50_ibn_a", "layer2.1.bn1.IN"),
    ],
)
def test_an_instance_norm_that_is_forgotten_is_noticed(name, path):
    net, image = randomise(FILES[name]()), picture()
    model, variables = loaded(without_bias(net.state_dict()))
    found = run_ours(model, variables, image, False)[1]
    assert compare.distance(found, embedding_of_theirs(net, image)) < 1e-6
    parent, _, leaf = path.rpartition(".")
    setattr(net.get_submodule(parent), leaf, torch.nn.Identity())
    assert compare.distance(found, embedding_of_theirs(net, image)) > 1e-3


@pytest.mark.parametrize(("name", "ours"), [("torchreid's resnet50", "resnet50"), ("mobilenetv2_0.5",) * 2])
def test_the_last_stride_is_seen(name, ours):
    net, image = randomise(FILES[name]()), picture()
    _, variables = loaded(without_bias(net.state_dict()))
    model = models.create(ours, projects.CLASSES, "bn", neck=False)
    expected = run_theirs(net, image, train=False)
    assert compare.distance(run_ours(model, variables, image, False)[1], expected) > 1e-3


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_prefixes_are_taken_off(prefix):
    state = without_bias(reid_nets.OSNet(0.25).state_dict())
    net, arrays = recognise({"state_dict": {f"{prefix}{name}": value for name, value in state.items()}})
    assert net.name == "osnet_x0_25" and arrays.keys() == state.keys()
    mixed = {f"module.{name}" if number else name: value for number, (name, value) in enumerate(state.items())}
    with pytest.raises(UserError, match=r"is not supported|names of no known project"):
        recognise(mixed)
    teacher = {f"module.{name}": value for name, value in reid_nets.Cion().state_dict().items()}
    assert recognise({"epoch": 3, "student": {}, "teacher": teacher})[0].norm == "ibn_a"


def test_a_net_of_another_size_is_refused_in_a_sentence():
    state = reid_nets.torchreid_resnet().state_dict()
    deeper = state | {f"layer3.6.{name[9:]}": value for name, value in state.items() if name.startswith("layer3.5.")}
    with pytest.raises(UserError, match="the state dict holds ResNet-50 in a size that is not supported"):
        recognise(deeper)


def resnet_with(**changes):
    return reid_nets.torchreid_resnet().state_dict() | {name.replace("_", "."): leaf for name, leaf in changes.items()}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: resnet_with(fc_0_weight=torch.ones(512, 2048)),
            r"variant of ResNet-50 .*, with fc\.0\.weight: choose",
        ),
        (
            lambda: resnet_with(layer1_2_IN_weight=torch.ones(256)),
            r"variant of ResNet-50 .*, with layer1\.2\.IN\.weight",
        ),
        (lambda: resnet_with(layer1_0_conv2_weight=torch.ones(128, 4, 3, 3)), "holds ResNet-50 in a size that is not"),
        (lambda: reid_nets.OSNet(0.5, ibn=True).state_dict(), "holds OSNet in a size that is not supported"),
    ],
    ids=["fc512", "IBN-b", "ResNeXt", "narrow OSNet-IBN"],
)
def test_a_variant_is_refused_and_not_called_a_net_that_fits(state, message):
    with pytest.raises(UserError, match=message):
        recognise(state())
    with pytest.raises(UserError, match=r"choose another file or another model$"):
        models.load_torch(state(), shapes_of_model("resnet50", "metabin"))


def shapes_of_model(name, norm):
    model = models.create(name, 5, norm)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))


@pytest.mark.parametrize(
    ("name", "asked", "method"),
    [
        ("osnet_x0_25", "resnet50", ""),
        ("mobilenetv2_1.4", "mobilenetv2_1.0", ""),
        ("timm", "mobilenetv2_1.4", ""),
        ("CION", "resnet50", " --config.method=ibn_a"),
    ],
)
def test_the_model_that_fits_is_named(name, asked, method):
    with pytest.raises(UserError) as error:
        models.load_torch(FILES[name]().state_dict(), shapes_of_model(asked, "metabin"))
    assert str(error.value).endswith(f"or the model that it fits, --config.model.name={EXPECTED[name][0]}{method}")


def test_metabin_replaces_the_batch_norms_of_osnet_and_leaves_its_instance_norms():
    shapes = shapes_of_model("osnet_ain_x1_0", "metabin")
    params, rho = shapes["params"]["backbone"], shapes["rho"]["backbone"]
    assert set(params["stem_norm"]) == set(params["stage2_block0"]["instance_norm"]) == {"scale", "bias"}
    assert "stem_norm" not in rho and "instance_norm" not in rho["stage2_block0"]
    assert set(rho["stage2_block0"]["stream4_light3"]) == {"norm"}
    assert set(params["fc_norm"]) == {"scale", "bias"} and "bnneck" in shapes["params"]
