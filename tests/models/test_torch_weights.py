"""Weights in: features of our model equal those of the project's net that the weights came from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_options import COMPILE_QUICKLY
from flax.traverse_util import flatten_dict

from metabin_jax import models
from metabin_jax.models.mobilenetv2 import STAGES
from metabin_jax.models.reid import BACKBONES

torch = pytest.importorskip("torch", reason="the projects' nets are in PyTorch")
projects = pytest.importorskip("torch_projects")
compare = pytest.importorskip("twin_compare")
randomise = projects.randomise

IMAGES, HEIGHT, WIDTH, IDS = 2, 256, 128, 5

SMALL = BACKBONES["tiny"].keywords  # stages, stem and head

# Of a project: its net, the same net of ours, and what that is to be recognised as. Small where names allow it.
PROJECTS = {
    "torchreid": (lambda: projects.Torchreid(**SMALL), "tiny", "MobileNetV2 of torchreid"),
    "released": (lambda: projects.released_mobilenet(**SMALL), "tiny", "MobileNetV2 of the released MetaBIN"),
    "torchvision": (lambda: projects.Torchvision(0.25), "mobilenetv2_standard_0.25", "MobileNetV2 of torchvision"),
    "tonylins": (lambda: projects.Torchvision(0.25, flat=True), "mobilenetv2_standard_0.25", "MobileNetV2 of tonylins"),
    "timm": (lambda: projects.Timm(0.25), "mobilenetv2_standard_0.25", "MobileNetV2 of timm"),
    "resnet": (projects.ResNet, "resnet50", "ResNet-50 of torchvision, timm or torchreid"),
    "released resnet": (projects.released_resnet, "resnet50", "ResNet-50 of the released MetaBIN"),
}


@functools.cache
def shapes_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))


def fresh(name, norm="metabin", num_ids=IDS, **kw):
    """Variables that any loaded value differs from, but for those that plain BN leaves at the start."""
    shapes = shapes_of(models.create(name, num_ids, norm, **kw))
    start = {"in_scale": 1.0, "in_bias": 0.0, "rho": 1.0}

    def value(path, leaf):
        return np.full(leaf.shape, start.get(path[-1].key, 0.25), leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, shapes)


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=COMPILE_QUICKLY)
def forward(model, variables, image_NHWC, train):
    """One program for all projects with the same net of ours."""
    return model.apply(variables, image_NHWC, train=train, mutable=["batch_stats"])[0]


def run_ours(model, variables, image, train):
    """Feature, embedding, logits in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        image_NHWC = jnp.asarray(image.permute(0, 2, 3, 1).numpy())
        return jax.device_get(forward(model, wide, image_NHWC, train))


def run_theirs(net, image, train):
    with torch.no_grad():
        return net.double().train(train)(image)


def picture():
    return torch.randn(IMAGES, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def flipped(state):
    """With the outputs of one convolution in the opposite order."""
    kernel = [name for name, value in state.items() if value.ndim == 4][2]
    return {**state, kernel: state[kernel].flip(0)}


@pytest.mark.parametrize("project", PROJECTS)
def test_features_equal_those_of_the_project(project):
    make, name, layout = PROJECTS[project]
    net, model, image = randomise(make()), models.create(name, IDS), picture()
    variables, report = models.load_torch(net.state_dict(), fresh(name))
    wrong, _ = models.load_torch(flipped(net.state_dict()), fresh(name))
    assert report.layout == layout
    for train in (False, True):
        expected = run_theirs(net, image, train)
        expected = expected[:2] if isinstance(expected, tuple) else (expected,)
        actual = run_ours(model, variables, image, train)
        for ours, theirs in zip(actual, expected, strict=False):
            assert compare.distance(ours, theirs) < 1e-6
        assert compare.distance(run_ours(model, wrong, image, train)[0], expected[0]) > 1e-3


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: projects.Torchreid(1.4), "mobilenetv2_1.4"),
        (lambda: projects.released_mobilenet(1.4), "mobilenetv2_1.4"),
        (lambda: projects.Torchvision(1.4), "mobilenetv2_standard_1.4"),
        (lambda: projects.Torchvision(1.0, flat=True), "mobilenetv2_standard_1.0"),
        (lambda: projects.Timm(1.4), "mobilenetv2_standard_1.4"),
        (lambda: projects.Timm(1.0), "mobilenetv2_1.0"),
    ],
)
def test_names_and_shapes_at_full_width(make, name):
    before = fresh(name)
    after, report = models.load_torch(make().state_dict(), before)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, before)
    assert {*report.loaded, *report.kept, *report.identity} == flatten_dict(before, sep="/").keys()
    assert bool(report.identity) == (name == "mobilenetv2_1.0")


def first_block(state, generator):
    """Stem, first block and a head of 8 channels of a tonylins file."""
    kept = {name: value for name, value in state.items() if name.startswith(("features.0.", "features.1."))}
    kept["conv.0.weight"] = torch.randn(8, 16, 1, 1, generator=generator)
    kept |= {f"conv.1.{leaf}": torch.ones(8) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return kept


def test_the_papers_variant_takes_the_standard_one_by_an_identity():
    """Exact by running statistics; by a batch's as near as the stem's output is to the normal it is taken for."""
    net, image = randomise(projects.Torchvision(1.0, flat=True)), picture()
    state = first_block(net.state_dict(), torch.Generator().manual_seed(2))
    settings = {"stages": STAGES[:1], "head": 8}
    variables, report = models.load_torch(state, fresh("mobilenetv2_1.0", **settings))
    assert {name.split("/")[3] for name in report.identity} == {"expand", "expand_norm"}
    model = models.create("mobilenetv2_1.0", IDS, **settings)

    head = torch.nn.Sequential(torch.nn.Conv2d(16, 8, 1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU6())
    head.load_state_dict({name[5:]: value for name, value in state.items() if name.startswith("conv.")}, strict=False)
    theirs = torch.nn.Sequential(*net.features[:2], head)

    # In this order: training changes the running statistics.
    expected = {train: run_theirs(theirs, image, train).permute(0, 2, 3, 1) for train in (False, True)}

    def distance(variables, train):
        own = {collection: tree["backbone"] for collection, tree in variables.items() if "backbone" in tree}
        return compare.distance(run_ours(model.backbone, own, image, train), expected[train])

    assert distance(variables, train=False) < 1e-6
    assert distance(variables, train=True) < 0.005
    # The identity that comes to mind first is one by running statistics only.
    norm = variables["params"]["backbone"]["stage2_block0"]["expand_norm"]
    running = variables["batch_stats"]["backbone"]["stage2_block0"]["expand_norm"]
    norm |= {"bn_scale": np.full_like(norm["bn_scale"], (1 + 1e-5) ** 0.5), "bn_bias": np.zeros_like(norm["bn_bias"])}
    running |= {"mean": np.zeros_like(running["mean"]), "var": np.ones_like(running["var"])}
    assert distance(variables, train=False) < 1e-6
    assert distance(variables, train=True) > 0.1


def tiny(make=None):
    return randomise((make or projects.Torchreid)(**SMALL)).state_dict()


@pytest.mark.parametrize(("norm", "half"), [("in", None), ("bn", None), ("bin", None), ("half", 4)])
def test_plain_batch_norm_in_every_layer(norm, half):
    state = tiny()
    after, report = models.load_torch(state, fresh("tiny", norm))
    affine = {"scale": state["conv1.bn.weight"].numpy(), "bias": state["conv1.bn.bias"].numpy()}
    moments = {"mean": state["conv1.bn.running_mean"].numpy(), "var": state["conv1.bn.running_var"].numpy()}
    params, stats = (flatten_dict(after.get(name, {}).get("backbone", {}).get("stem_norm", {}), sep="/")
                     for name in ("params", "batch_stats"))  # fmt: skip
    if half:
        expected = {f"bn/{leaf}": value[:half] for leaf, value in affine.items()}
        expected |= {f"in/{leaf}": value[half:] for leaf, value in affine.items()}
        moments = {f"bn/{leaf}": value[:half] for leaf, value in moments.items()}
    else:
        expected = affine
    for actual, wanted in ((params, expected), (stats, {} if norm == "in" else moments)):
        assert actual.keys() == wanted.keys()
        assert all(np.array_equal(actual[name], wanted[name]) for name in wanted)
    assert ("conv1.bn.running_mean" in report.ignored) == (norm == "in")
    assert ("rho/backbone/stem_norm/rho" in report.kept) == (norm == "bin")


def test_the_report_of_a_plain_file():
    before = fresh("tiny")
    after, report = models.load_torch(tiny(), before)
    flat_before, flat_after = (flatten_dict(tree, sep="/") for tree in (before, after))
    changed = {name for name in flat_before if not np.array_equal(flat_before[name], flat_after[name])}
    assert changed == set(report.loaded)
    tops = {name.split("/")[1] if "backbone" not in name else name.split("/")[-1] for name in report.kept}
    assert tops == {"bnneck", "classifier", "in_scale", "in_bias", "rho"}
    needless = {name for name in tiny() if name.endswith("num_batches_tracked")}
    assert set(report.ignored) == {*needless, "classifier.weight", "classifier.bias"}
    assert "arrays loaded from a MobileNetV2 of torchreid" in str(report)


def test_a_classifier_of_the_right_shape_is_taken():
    state = tiny(projects.released_mobilenet)
    kept, report = models.load_torch(state, fresh("tiny"))
    assert "params/classifier/kernel" in report.kept
    taken, report = models.load_torch(state, fresh("tiny", num_ids=projects.CLASSES))
    assert report.kept == ()
    assert np.array_equal(taken["params"]["classifier"]["kernel"], state["heads.classifier_fc.weight"].numpy().T)
    assert np.all(kept["params"]["classifier"]["kernel"] == 0.25)
    assert np.array_equal(kept["rho"]["backbone"]["stem_norm"]["rho"], state["backbone.layer1.bn.gate"].numpy())


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


def test_what_does_not_match_is_listed_on_both_sides():
    state = without(tiny(), "conv1.bn.weight", "conv3.0.conv1.conv.weight")
    state |= {"conv4.1.conv1.conv.weight": torch.ones(1), "extra": torch.ones(1), "conv9.bn.bias": torch.ones(5)}
    with pytest.raises(ValueError) as error:
        models.load_torch(state, fresh("tiny"))
    assert str(error.value) == (
        "the state dict (MobileNetV2 of torchreid) does not fit the model: 2 of the model's names are missing in the "
        "file (params/backbone/stage3_block0/expand/kernel [1, 1, 8, 16], params/backbone/stem_norm/bn_scale [8]); 2 "
        "of the file's names are unknown to the model (conv4.1.conv1.conv.weight [1], extra [1]); 1 shapes differ "
        "(params/backbone/head_norm/bn_bias is [32], conv9.bn.bias [5]): choose another file or another model"
    )
    may_differ = ("classifier", "backbone/stem_norm", "backbone/stage3_block0/expand", "conv4.1", "extra")
    with pytest.raises(ValueError, match=r"model: 1 shapes differ \("):
        models.load_torch(state, fresh("tiny"), may_differ=may_differ)
    after, report = models.load_torch(state, fresh("tiny"), may_differ=(*may_differ, "conv9.bn"))
    assert np.all(after["params"]["backbone"]["stem_norm"]["bn_scale"] == 0.25)
    assert {"extra", "conv9.bn.bias", "conv4.1.conv1.conv.weight"} <= set(report.ignored)


def released(**changes):
    return tiny(projects.released_mobilenet) | changes


@pytest.mark.parametrize(
    ("state", "norm", "message"),
    [
        (lambda: {"a.weight": torch.ones(1)}, "metabin", "the names of no known project (a.weight); known are"),
        (lambda: projects.ResNet().state_dict(), "metabin", "holds ResNet-50, but the model is another net"),
        (lambda: without(released(), "backbone.layer1.bn.gate"), "metabin", "missing in the file (rho/backbone/stem_"),
        (lambda: without(released(), "heads.classifier_norm.weight"), "metabin", "missing in the file (params/bnneck"),
        (lambda: released(**{"heads.classifier_norm.bias": torch.ones(32)}), "metabin", "norm.bias [32])"),
        (released, "bn", "gate"),
        (lambda: tiny() | {"conv1.bn.bias": torch.full((8,), torch.nan)}, "metabin", "in conv1.bn.bias that are not"),
        (lambda: tiny() | {"conv1.bn.running_var": -torch.ones(8)}, "metabin", "var that are negative"),
        (lambda: tiny() | {"conv1.bn.bias": torch.ones(8).to(torch.int8)}, "metabin", "bias that are int8, not fl"),
        (lambda: tiny() | {"conv1.bn.bias": torch.ones(8) + 1j}, "metabin", "conv1.bn.bias that are complex64, not fl"),
        (lambda: {"epoch": 3, "conv1.conv.weight": torch.ones(1)}, "metabin", "holds 'epoch', a int where"),
    ],
)  # fmt: skip
def test_a_state_dict_that_does_not_fit(state, norm, message):
    with pytest.raises(ValueError) as error:
        models.load_torch(state(), fresh("tiny", norm))
    assert message in str(error.value)


def test_two_names_for_one_of_ours():
    state = projects.ResNet().state_dict() | {"classifier.weight": torch.ones(7, 2048)}
    with pytest.raises(ValueError, match=r"has fc\.weight and classifier\.weight for one array of ours"):
        models.load_torch(state, fresh("resnet50"))
