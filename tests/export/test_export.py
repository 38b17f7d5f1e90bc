"""Exported nets against the net itself, by the path that evaluation takes."""

import collections
import functools
import importlib.util
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import draw_folder, tiny_config

from metabin_jax import cli, models
from metabin_jax.algorithm import TrainState
from metabin_jax.data.records import Record
from metabin_jax.evaluation import embed
from metabin_jax.export import FORMATS, formats, run
from metabin_jax.export.inference import embedder
from metabin_jax.norm import LAYERS, Affine, BatchNorm, Norm
from metabin_jax.training import train
from metabin_jax.training.checkpoint import Checkpoints

HEIGHT, WIDTH = 32, 24
IMAGE_NHWC = np.random.default_rng([1]).integers(0, 256, (17, HEIGHT, WIDTH, 3), np.uint8)
RHO = ("one", "zero", "between", "mixed")


def draw_rho(kind, channels, rng):
    between = rng.uniform(0.1, 0.9, channels)
    mixed = np.where(rng.random(channels) < 0.5, between, rng.integers(0, 2, channels))
    return {"one": np.ones(channels), "zero": np.zeros(channels), "between": between, "mixed": mixed}[kind]


def draw_variables(shapes, rho=RHO):
    """Trained-looking values: moments, affines and rho away from where they start, layers of each kind in turn."""
    rng = np.random.default_rng([2])
    kinds = iter(rho * 99)

    def value(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        if name == "rho":
            return draw_rho(next(kinds), leaf.shape, rng).astype(np.float32)
        low, high = {"var": (0.5, 2), "mean": (-0.5, 0.5)}.get(name, (0.6, 1.4) if "scale" in name else (-0.4, 0.4))
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


@functools.cache
def net(name="tiny", norm="metabin", rho=RHO):
    """A model, its variables, and the embeddings of IMAGE_NHWC divided by their lengths."""
    model = models.create(name, 5, norm=norm)
    init = functools.partial(model.init, train=False)
    variables = draw_variables(jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, HEIGHT, WIDTH, 3))), rho)
    return model, variables, unit(embed(model, variables, IMAGE_NHWC))


def unit(embedding_ND):
    return embedding_ND / np.sqrt((embedding_ND**2).sum(1, keepdims=True))


def load(to, path, content):
    path.write_bytes(content)
    return FORMATS[to].load(path)


def assert_equal(exported, expected_ND, atol=2e-6):
    for n in (1, 3, 17):
        embedding_ND = exported(IMAGE_NHWC[:n])
        assert embedding_ND.dtype == np.float32
        np.testing.assert_allclose(embedding_ND, expected_ND[:n], atol=atol)
        np.testing.assert_allclose(np.linalg.norm(embedding_ND, axis=1), 1, atol=1e-6)


def ops(model, variables):
    onnx_graph = pytest.importorskip("metabin_jax.export.onnx_graph", reason="needs onnx")
    proto = onnx_graph.onnx_model(embedder(model, variables, HEIGHT, WIDTH, library=True), HEIGHT, WIDTH)
    return collections.Counter(node.op_type for node in proto.graph.node)


@pytest.mark.parametrize(("norm", "library"), [("metabin", False), *((norm, True) for norm in sorted(LAYERS))])
def test_the_reduced_net_is_the_net(norm, library):
    model, variables, expected_ND = net(norm=norm)
    reduced = jax.jit(embedder(model, variables, HEIGHT, WIDTH, library))
    np.testing.assert_allclose(reduced(IMAGE_NHWC), expected_ND, atol=2e-6)
    backbone = variables["params"]["backbone"]
    stem = {"kernel": backbone["stem"]["kernel"] + 0.01}
    changed = {**variables, "params": {**variables["params"], "backbone": {**backbone, "stem": stem}}}
    wrong = jax.jit(embedder(model, changed, HEIGHT, WIDTH, library))
    assert np.abs(wrong(IMAGE_NHWC) - expected_ND).max() > 1e-3


class Gated(Norm):
    """A layer from outside the package: a gate between xB and xI."""

    @nn.compact
    def affine(self, channels, batch=None):
        gate_C = self.vector("gate_scale", nn.initializers.constant(0.5), channels)
        batch_C, shift_C = self.batch_branch(channels, batch)
        return Affine(gate_C * batch_C, 1 - gate_C, gate_C * shift_C)


class Twice(Norm):
    """With submodules, of which one has no instance branch."""

    def setup(self):
        self.inner = BatchNorm()
        self.gated = Gated()

    def affine(self, channels, batch=None):
        both = self.inner.affine(channels, batch), self.gated.affine(channels, batch)
        return Affine(both[0].batch_C + both[1].batch_C, both[1].instance_C, both[0].shift_C + both[1].shift_C)


@pytest.mark.parametrize("layer", [Gated, Twice])
def test_a_layer_from_outside_the_package(monkeypatch, layer):
    monkeypatch.setitem(LAYERS, layer.__name__, (layer, BatchNorm))
    model, variables, expected_ND = net(norm=layer.__name__)
    reduced = jax.jit(embedder(model, variables, HEIGHT, WIDTH, library=True))
    np.testing.assert_allclose(reduced(IMAGE_NHWC), expected_ND, atol=2e-6)
    assert ops(model, variables)["ReduceSum"] > 2, "it has an instance branch"
    _, updated = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))(
        jnp.ones((4, 32, 24, 3))
    )
    old, new = variables["batch_stats"]["backbone"]["stem_norm"], updated["batch_stats"]["backbone"]["stem_norm"]
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (old, new)), strict=True))


def test_layers_with_rho_1_need_no_moments():
    """Two means per layer with rho below 1. The mean of the map and the length are always there."""
    layers = 14
    below_1 = {("one",): 0, ("zero",): layers, ("one", "between"): layers // 2, ("mixed",): layers}
    for rho, with_moments in below_1.items():
        counted = ops(*net(rho=rho)[:2])
        assert counted["ReduceSum"] == 2 + 2 * with_moments
        # x * scale; BNNeck, the length and, per layer with moments, a square and two products of [N, C].
        assert counted["Mul"] == 2 + 4 * with_moments
    assert ops(*net(norm="bn")[:2])["ReduceSum"] == 2


@pytest.mark.parametrize(("name", "norm"), [("tiny", "metabin"), ("small", "metabin"), ("tiny", "half")])
def test_onnx(tmp_path, name, norm):
    pytest.importorskip("onnxruntime", reason="runs the exported file")
    onnx = pytest.importorskip("onnx", reason="makes the exported file")
    model, variables, expected_ND = net(name, norm)
    content = FORMATS["onnx"].write(model, variables, IMAGE_NHWC)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    assert_equal(load("onnx", tmp_path / "net", content), expected_ND)
    with pytest.raises(AssertionError):
        assert_equal(load("onnx", tmp_path / "net", content), expected_ND[:, ::-1])


def test_onnx_of_what_only_resnet_has(tmp_path):
    pytest.importorskip("onnxruntime", reason="runs the exported file")
    onnx_graph = pytest.importorskip("metabin_jax.export.onnx_graph", reason="needs onnx")

    def pooled(image_NHWC):
        x_NHWC = nn.max_pool(image_NHWC.astype(jnp.float32) - 300, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return x_NHWC.sum((1, 2))

    got = load("onnx", tmp_path / "net", onnx_graph.onnx_model(pooled, HEIGHT, WIDTH).SerializeToString())(IMAGE_NHWC)
    padded = np.pad(IMAGE_NHWC.astype(np.float32) - 300, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    corners = [(2 * i, 2 * j) for i in range(HEIGHT // 2) for j in range(WIDTH // 2)]
    expected = sum(padded[:, i : i + 3, j : j + 3].max((1, 2)) for i, j in corners)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_primitive_without_a_rule_is_named():
    onnx_graph = pytest.importorskip("metabin_jax.export.onnx_graph", reason="needs onnx")
    with pytest.raises(NotImplementedError, match="the JAX primitive sin has no ONNX rule"):
        onnx_graph.onnx_model(lambda image_NHWC: jnp.sin(image_NHWC.astype(jnp.float32).sum((1, 2))), HEIGHT, WIDTH)


def test_stablehlo(tmp_path):
    model, variables, expected_ND = net()
    content = FORMATS["stablehlo"].write(model, variables, IMAGE_NHWC)
    assert_equal(load("stablehlo", tmp_path / "net", content), expected_ND)
    assert jax.export.deserialize(bytearray(content)).platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("norm", ["metabin", "bn"])
def test_tflite(tmp_path, norm):
    pytest.importorskip("litert_converter", reason="makes the exported file")
    pytest.importorskip("ai_edge_litert", reason="runs the exported file")
    model, variables, expected_ND = net(norm=norm)
    content = FORMATS["tflite"].write(model, variables, IMAGE_NHWC)
    assert_equal(load("tflite", tmp_path / "net", content), expected_ND)


def test_tflite_in_int8(tmp_path):
    """Smaller, near, but not equal."""
    pytest.importorskip("litert_converter", reason="makes the exported file")
    pytest.importorskip("litert_quantizer", reason="makes int8 of it")
    model, variables, expected_ND = net("small")
    sizes = [len(FORMATS[to].write(model, variables, IMAGE_NHWC)) for to in ("tflite", "tflite-int8")]
    assert sizes[1] < 0.6 * sizes[0]
    exported = load("tflite", tmp_path / "net", FORMATS["tflite-int8"].write(model, variables, IMAGE_NHWC))
    assert 0.95 < (exported(IMAGE_NHWC) * expected_ND).sum(1).min() < 1 - 1e-5


def test_int8_keeps_the_widest_range():
    seen = [{"a": {"min": np.array([-1.0]), "max": np.array([2.0]), "n": 1}, "b": {}}]
    seen += [{"a": {"min": np.array([-3.0]), "max": np.array([1.0]), "n": 1}, "b": {}}]
    assert formats._widest(seen) == {"a": {"min": [-3.0], "max": [2.0], "n": 1}, "b": {}}


def test_a_domain_is_its_queries_and_gallery():
    splits = ("query", "train", "gallery")
    records = [Record(f"{row}.png", row % 3, row, "west", split) for row, split in enumerate(splits)]
    image_NHWC = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    domain = run._domain("west", image_NHWC, records, "cross-camera")
    assert domain.image_NHWC.ravel().tolist() == [0, 2]
    assert (domain.split.query_row.tolist(), domain.split.gallery_row.tolist()) == ([0], [1])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a training leaves that export needs, of a net that computes in bfloat16."""
    root = tmp_path_factory.mktemp("export")
    config = tiny_config(draw_folder(root / "data", domains=("west", "east")))
    config.model.dtype = "bfloat16"
    train.describe_run(config, [], root / "run")
    _, variables, _ = net()
    with Checkpoints(root / "run", scored=False) as checkpoints:
        checkpoints.save(TrainState(step=jnp.asarray(7, jnp.int32), opt_state=(), **variables))
    return root / "run"


def command(capsys, workdir, output, to, *more):
    status = cli.main(["export", f"--model={workdir}", f"--to={to}", f"--output={output}", *more])
    return status, *capsys.readouterr()


def test_export_by_command(capsys, tmp_path, workdir):
    status, out, _ = command(capsys, workdir, tmp_path / "net.bin", "stablehlo")
    assert status == 0
    first, last = out.splitlines()
    assert first.startswith("west: 16 images, largest difference from JAX ")
    assert float(first.split("JAX ")[1].split(",")[0]) < 2e-6
    assert first.endswith("(+0.00)")
    assert last == f"step 7 of {workdir} is in {tmp_path / 'net.bin'}"
    exported = jax.export.deserialize(bytearray((tmp_path / "net.bin").read_bytes()))
    model, variables, _ = net()
    image_NHWC = np.random.default_rng([3]).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(exported.call(image_NHWC), unit(embed(model, variables, image_NHWC)), atol=2e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["net.bin"]

    config = (workdir / "config.json").read_text()
    assert json.loads(config)["model"]["dtype"] == "bfloat16"
    status, out, _ = command(
        capsys, workdir, tmp_path / "net.bin", "stablehlo", "--overwrite", "--config.data.eval_domains="
    )
    assert status == 0
    assert out.startswith("underpass (synthetic): 80 images, ")
    assert (workdir / "config.json").read_text() == config


def test_a_run_whose_pictures_are_gone_is_exported(capsys, tmp_path, workdir):
    gone = f"--config.data.path={tmp_path}/gone"
    status, out, err = command(capsys, workdir, tmp_path / "net.bin", "stablehlo", gone)
    assert (status, out.split(":")[0]) == (0, "underpass (synthetic)")
    assert "gone does not exist" in err and err.endswith("so the file is compared with JAX on synthetic people\n")


def test_a_changed_weight_is_found_and_leaves_no_file(capsys, tmp_path, workdir, monkeypatch):
    def wrong(model, variables, image_NHWC):
        changed = jax.tree.map(lambda leaf: leaf, variables)
        changed["rho"]["backbone"]["head_norm"]["rho"] = changed["rho"]["backbone"]["head_norm"]["rho"] * 0.99
        return formats.write_stablehlo(model, changed, image_NHWC)

    monkeypatch.setitem(FORMATS, "stablehlo", FORMATS["stablehlo"]._replace(write=wrong))
    (tmp_path / "old").write_text("of an earlier export")
    for name in ("new", "old"):
        status, out, err = command(capsys, workdir, tmp_path / name, "stablehlo", "--overwrite")
        assert (status, out) == (2, "")
        assert err.startswith("metabin export: the stablehlo file differs from JAX by ")
        assert err.endswith(f"more than 1e-04: {tmp_path / name} was not written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "of an earlier export"


def test_an_embedding_that_is_no_number_is_a_difference(capsys, tmp_path, workdir, monkeypatch):
    def broken(path):
        return lambda image_NHWC: np.full((len(image_NHWC), 32), np.nan, np.float32)

    monkeypatch.setattr(run, "_mean_ap", lambda embedding_ND, split: 0.0)
    monkeypatch.setitem(FORMATS, "stablehlo", FORMATS["stablehlo"]._replace(load=broken))
    assert "differs from JAX by nan" in command(capsys, workdir, tmp_path / "net", "stablehlo")[2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"to": "coreml"}, "--to must be one of stablehlo, onnx, tflite, tflite-int8; got 'coreml'"),
        ({"to": ""}, "argument --to: must not be empty"),
        ({"workdir": "{dir}/no"}, "no does not exist: name a workdir of metabin train or a file of weights"),
        ({"workdir": "{dir}/untrained"}, "holds no checkpoint: train there first"),
        ({"output": "{dir}/no/net"}, "{dir}/no/net cannot be written: there is no folder {dir}/no."),
        ({"output": "{dir}/untrained"}, "untrained cannot be written: it is a folder"),
        ({"output": "{dir}/untrained/config.json/net"}, "net cannot be written: there is no folder"),
        ({"more": "--config.method=bn"}, "config.method was fixed by the training"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence_and_no_file(capsys, tmp_path, workdir, changed, message):
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "config.json").write_text((workdir / "config.json").read_text())
    before = sorted(tmp_path.rglob("*"))
    given = {"workdir": workdir, "output": tmp_path / "net", "to": "stablehlo", "more": "--config.eval.policy=ignore"}
    given |= {name: value.format(dir=tmp_path) for name, value in changed.items()}
    status, out, err = command(capsys, *(given[name] for name in ("workdir", "output", "to", "more")))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("metabin export: ")
    assert message.format(dir=tmp_path) in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", list(FORMATS))
def test_a_missing_package_is_named_with_what_installs_it(capsys, tmp_path, workdir, monkeypatch, to):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, out, err = command(capsys, workdir, tmp_path / "net", to)
    assert (status, out, err.count("\n")) == (2, "", 1)
    needs, extra = " and ".join(FORMATS[to].needs).replace("_", "-"), "tflite" if "tflite" in to else "export"
    assert err.startswith(f"metabin export: --to={to} needs {needs}: ") and f"[{extra}]'" in err
    assert not list(tmp_path.iterdir())


def test_help_names_every_format(capsys):
    assert cli.main(["export", "--help"]) == 0
    out, _ = capsys.readouterr()
    assert all(f"\n  {to} " in out for to in FORMATS)
    assert max(map(len, out.splitlines())) <= 120
