"""Programs compiled for a card that is not there; skipped without CUDA's compiler."""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from metabin_jax import cli, norm
from metabin_jax.models.convolution import Before, by_library, convolve
from metabin_jax.plan import find_target, measure, sketch
from metabin_jax.plan import run as plan_module
from metabin_jax.plan.program import Program
from metabin_jax.plan.run import OPTIONS, host_of, variants
from metabin_jax.runtime.devices import shapes_on
from metabin_jax.training.config import metabin

pytestmark = pytest.mark.usefixtures("settings_of_jax")
CONFIG = f"--config={Path(__file__).parents[2] / 'configs' / 'metabin.py'}"
VARIANTS = ["bfloat16, first order", "bfloat16, exact", "float32, first order", "float32, exact"]


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
    assert needs.work.moved > needs.norms and needs.work.kernels > 100 and needs.convolutions == 0
    assert 0 < sum(buffer.size for buffer in needs.largest) <= needs.temporaries


def test_two_devices_share_the_step_of_a_small_net(h100, quick_net, monkeypatch):
    """Its gradients and the statistics of its one norm layer cross, and what the losses need of the whole batch."""
    config = metabin()
    config.method, config.data.height, config.data.width = "bn", 64, 32
    run = sketch(config, num_ids=40)
    rows, features, channels = 80, 8 * 4 * 8, 8
    parameters = 3 * channels + features * 40  # of the first layer and of the classifier
    # Mean and variance; back come three sums that the layer's four vectors take their gradients from, and the mean's.
    statistics = 2 * channels + 3 * channels + channels
    losses = 2 * features + 2  # the centre of the distances and its gradient, and the losses themselves

    def measured(devices):
        needs, found = measure(run, h100, devices), Counter()
        for each in needs.work.collectives:
            found[each.kind] += each.size * each.times
        return needs, found

    alone, none = measured(1)
    shared, found = measured(2)
    assert none == {}
    assert found == {
        "all-reduce": 4 * (parameters + statistics + losses),
        "all-gather": 4 * rows * (features + 2),  # with a square and an identity each
        "reduce-scatter": 4 * rows * (features + 1),
    }
    assert shared.floor == alone.floor / 2 and 1 <= shared.norms / shared.floor < 3
    images = rows * (64 * 32 * 3 + 2 * 4)
    assert alone.arguments - shared.arguments == pytest.approx(images / 2, rel=0.01)
    # Moments that are the same whatever the batch holds do not cross, and nor do their gradients.
    monkeypatch.setattr(norm, "batch_moments", lambda mean_NC, var_NC: (jnp.zeros(channels), jnp.ones(channels)))
    assert measured(2)[1]["all-reduce"] == found["all-reduce"] - 4 * (2 * channels + channels)


def test_the_backward_pass_keeps_no_normalised_map(h100):
    """A chain of wide maps must cost one map a layer, where the plain one costs two."""
    layers, shape = 6, (16, 64, 64, 32)
    library = functools.partial(by_library, stride=1)

    def temporaries(conv):
        def loss(kernels, x_NHWC, scale_NC):
            for kernel in kernels:
                x_NHWC = conv(x_NHWC, kernel, Before(scale_NC, scale_NC, nn.relu6))
            return x_NHWC.sum()

        kernel, x_NHWC, scale_NC = shapes_on(
            host_of(h100).whole, [jax.ShapeDtypeStruct(dims, jnp.float32) for dims in ((3, 3, 1, 32), shape, (16, 32))]
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
    shape = (80, 64, 32, 64)
    layer = norm.BatchInstanceNorm()
    variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((2, 1, 1, 64)), train=False))
    arguments = shapes_on(host_of(h100).whole, (variables, jax.ShapeDtypeStruct(shape, jnp.bfloat16)))

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
