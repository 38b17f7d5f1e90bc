"""Programs compiled for a card that is not there; skipped without CUDA's compiler."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from metabin_jax import cli, norm
from metabin_jax.config import metabin
from metabin_jax.models.convolution import Before, by_library, convolve
from metabin_jax.plan import find_target, measure, sketch
from metabin_jax.plan import run as plan_module
from metabin_jax.plan.program import Program
from metabin_jax.plan.run import OPTIONS, device_of, variants

CONFIG = f"--config={Path(__file__).parents[1] / 'configs' / 'metabin.py'}"
VARIANTS = ["bfloat16, first order", "bfloat16, exact", "float32, first order", "float32, exact"]


@pytest.fixture(autouse=True)
def settings():
    """Those of the process, which the command changes for itself, stay those of the other tests."""
    names = ("jax_platforms", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


# A map of 4 x 2 x 2 x 8 bf16 (256 bytes), its two moments f32[4,8] (128 bytes each), and what comes of it.


@pytest.fixture
def h100():
    pytest.importorskip("jax_cuda12_plugin", reason="compiles for a GPU, which needs metabin_jax[cuda] but no GPU")
    # The cache of the tests cannot load programs of a card that is not there: nothing is put into it.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    return find_target("h100")


def test_the_step_of_a_small_net(h100, quick_net):
    """Its norm layer has a float32 map of 8 x 4 x 8."""
    config = metabin()
    config.data.height, config.data.width = 64, 32
    run = sketch(config, num_ids=40)
    needs = measure(run, h100)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(run.init)))
    images = 80 + 48 + 32
    assert math.isclose(needs.arguments, state + images * 64 * 32 * 3, rel_tol=0.01)
    assert needs.floor == 3 * images * 8 * 4 * 8 * 4
    assert 1 <= needs.norms / needs.floor < 3  # its moments are a fourth of a map this small, twice
    assert needs.moved > needs.norms and needs.kernels > 100 and needs.convolutions == 0
    assert 0 < sum(buffer.size for buffer in needs.largest) <= needs.temporaries


def test_the_backward_pass_keeps_no_normalised_map(h100):
    """A chain of wide maps must cost one map a layer, where the plain one costs two."""
    device, layers, shape = device_of(h100), 6, (16, 64, 64, 32)
    library = functools.partial(by_library, stride=1)

    def temporaries(conv):
        def loss(kernels, x_NHWC, scale_NC):
            for kernel in kernels:
                x_NHWC = conv(x_NHWC, kernel, Before(scale_NC, scale_NC, nn.relu6))
            return x_NHWC.sum()

        kernel, x_NHWC, scale_NC = (
            jax.ShapeDtypeStruct(dims, jnp.float32, sharding=device) for dims in ((3, 3, 1, 32), shape, (16, 32))
        )
        lowered = jax.jit(jax.grad(loss)).lower([kernel] * layers, x_NHWC, scale_NC)
        compiled = lowered.compile(compiler_options=OPTIONS)
        return compiled.memory_analysis().temp_size_in_bytes / (4 * math.prod(shape))

    def plain(x_NHWC, kernel, before):
        scale_NHWC, shift_NHWC = (a[:, None, None, :] for a in before[:2])
        return library(before.act(x_NHWC * scale_NHWC + shift_NHWC), kernel)

    assert temporaries(functools.partial(convolve, library, library)) < layers + 4
    assert temporaries(plain) > 2 * layers - 1


def test_a_norm_layer_reads_its_map_once_for_its_moments(h100, monkeypatch):
    """Its floor is two reads and a write. Moments in two passes, as on a CPU, are 4/3 of that."""
    device, shape = device_of(h100), (80, 64, 32, 64)
    layer = norm.BatchInstanceNorm()
    variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((2, 1, 1, 64)), train=False))
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        (variables, jax.ShapeDtypeStruct(shape, jnp.bfloat16)),
    )

    def share_of_floor():
        forward = jax.jit(lambda variables, x_NHWC: layer.apply(variables, x_NHWC, train=True, mutable=["batch_stats"]))
        text = forward.lower(*arguments).compile(compiler_options=OPTIONS).as_text()
        size = 2 * math.prod(shape)
        return Program.parse(text).norm_traffic({"BatchInstanceNorm": [size]}) / (3 * size)

    assert 1 <= share_of_floor() < 1.1
    monkeypatch.setattr(norm, "instance_moments", norm._moments_about_mean)
    assert 1.3 < share_of_floor() < 1.4


def test_the_command(h100, quick_net, capsys, monkeypatch):
    monkeypatch.setattr(plan_module, "variants", lambda config: itertools.islice(variants(config), 1, 3))
    arguments = ["--target=h100", "--identities=40", "--config.data.height=64", "--config.data.width=32"]
    assert cli.main(["plan", CONFIG, *arguments]) == 0
    first, _, header, _, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "metabin, mobilenetv2_1.4, 64 x 32, 80 + 48 + 32 images a step, 40 identities, on NVIDIA H100"
    )
    assert [row.split(" | ")[0][2:] for row in rest[:2]] == VARIANTS[1:3]
    assert all(row.count("|") == header.count("|") and " | yes | " in row for row in rest[:2])
    assert rest[2:4] == ["", "Largest at the peak:"]
    assert [line.split(":")[0][2:] for line in rest[4:]] == VARIANTS[1:3]


def test_float64_in_the_step_is_refused(h100, quick_net):
    """JAX in its float64 mode, and a gamma of that type."""
    run = sketch(metabin(), num_ids=40)
    wide = dataclasses.replace(run.learner, gamma=lambda step: jnp.float64(0.1) * step)
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"the training step has \d+ .* first: float64 in "):
        measure(dataclasses.replace(run, learner=wide), h100)
