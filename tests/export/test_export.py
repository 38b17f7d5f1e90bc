"""Exported nets against the net itself, by the path that evaluation takes."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metabin_jax import models
from metabin_jax.data.records import Record
from metabin_jax.evaluation import embed
from metabin_jax.export import FORMATS, formats, run
from metabin_jax.export.inference import embedder
from metabin_jax.norm import LAYERS, Affine, BatchNorm, Norm

pytestmark = pytest.mark.usefixtures("all_forms")  # a file holds the forms of several platforms

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
