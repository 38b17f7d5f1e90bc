"""Programs compiled for a card that is not there; skipped without CUDA's compiler."""

import dataclasses
import functools
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from metabin_jax import cli
from metabin_jax.models.convolution import Before, by_library, convolve
from metabin_jax.plan import find_target, measure
from metabin_jax.plan.run import OPTIONS, host_of
from metabin_jax.runtime.devices import shapes_on
from metabin_jax.training.config import metabin
from metabin_jax.training.sketch import sketch

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
    config = metabin()
    config.data.height, config.data.width = 64, 32
    run = sketch(config, num_ids=40)
    needs = measure(run, h100)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(run.init)))
    images = 80 + 48 + 32
    assert math.isclose(needs.arguments, state + images * 64 * 32 * 3, rel_tol=0.01)
    assert needs.peak == needs.arguments + needs.temporaries > needs.arguments and needs.seconds > 0


def test_two_devices_share_the_step_of_a_small_net(h100, quick_net):
    config = metabin()
    config.method, config.data.height, config.data.width = "bn", 64, 32
    run = sketch(config, num_ids=40)
    alone, shared = (measure(run, h100, devices) for devices in (1, 2))
    images = 80 * (64 * 32 * 3 + 2 * 4)
    assert alone.arguments - shared.arguments == pytest.approx(images / 2, rel=0.01)


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


def test_the_command(h100, quick_net, capsys):
    arguments = ["--target=h100", "--identities=40", "--config.data.height=64", "--config.data.width=32"]
    assert cli.main(["plan", CONFIG, *arguments]) == 0
    first, _, header, _, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "metabin, mobilenetv2_1.4, 64 x 32, 80 + 48 + 32 images a step, 40 identities, on NVIDIA H100"
    )
    assert [row.split(" | ")[0][2:] for row in rows] == VARIANTS
    assert all(row.count("|") == header.count("|") and " | yes | " in row for row in rows)


def test_float64_in_the_step_is_refused(h100, quick_net):
    """JAX in its float64 mode, and a gamma of that type."""
    run = sketch(metabin(), num_ids=40)
    wide = dataclasses.replace(run.learner, gamma=lambda step: jnp.float64(0.1) * step)
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match=r"the training step must not contain float64 in .*; \d+"),
    ):
        measure(dataclasses.replace(run, learner=wide), h100)
