"""Forms of a computation per platform, and which of them are traced."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config

from metabin_jax.models.convolution import Before, by_library, convolve, depthwise_by_shifts
from metabin_jax.norm import instance_moments
from metabin_jax.runtime.platforms import by_platform, tracing_for
from metabin_jax.training import train
from metabin_jax.training.build import build, resolve
from metabin_jax.training.sketch import batch_shapes
from metabin_jax.training.train import make_step

DEPTHWISE, LIBRARY = (functools.partial(conv, stride=1) for conv in (depthwise_by_shifts, by_library))


def double(x):
    return by_platform(x, cpu=lambda x: x + x, default=lambda x: 2 * x)


def traced(platform):
    def function(x):
        with tracing_for(platform):
            return double(x)

    return jax.jit(function).trace(jnp.ones(3))


def primitives(jaxpr):
    """Names of all primitives of a jaxpr and those inside of it."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= primitives(inner)
    return found


@pytest.mark.parametrize(("platform", "expected"), [("cpu", {"add"}), ("gpu", {"mul"}), ("tpu", {"mul"})])
def test_one_platforms_form_alone_is_traced(platform, expected):
    assert {"add", "mul"} & primitives(traced(platform).jaxpr.jaxpr) == expected
    assert "platform_index" not in primitives(traced(platform).jaxpr.jaxpr)


def test_without_a_platform_all_forms_are_there_and_the_compiler_chooses(all_forms):
    whole = jax.jit(double).trace(jnp.ones(3))
    assert {"add", "mul", "platform_index"} <= primitives(whole.jaxpr.jaxpr)
    for platform, word, other in (("cpu", "add", "multiply"), ("cuda", "multiply", "add")):
        text = whole.lower(lowering_platforms=(platform,)).as_text()
        assert f"stablehlo.{word}" in text
        assert f"stablehlo.{other}" not in text


def test_it_ends_with_its_block_and_with_an_error(all_forms):
    with pytest.raises(ZeroDivisionError), tracing_for("gpu"):
        raise ZeroDivisionError
    with tracing_for("gpu"):
        with tracing_for("cpu"):
            pass
        assert primitives(jax.make_jaxpr(lambda x: double(x))(1.0).jaxpr) == {"mul"}
    assert "platform_index" in primitives(jax.make_jaxpr(lambda x: double(x))(1.0).jaxpr)


def test_a_step_holds_the_forms_of_its_platform_alone(folder, monkeypatch, all_forms):
    run = build(resolve(tiny_config(folder)))
    state, raw = jax.eval_shape(run.init), batch_shapes(run)

    def signs(step):
        """A scan over groups of images is the CPU's form of a kernel's gradient."""
        found = primitives(step.trace(state, raw, run.key).jaxpr.jaxpr)
        return {"platform_index", "scan"} & found

    assert signs(make_step(run)) == ({"scan"} if jax.default_backend() == "cpu" else set())
    assert signs(make_step(run, "gpu")) == set()
    monkeypatch.setattr(train, "tracing_for", lambda platform: contextlib.nullcontext())
    assert signs(make_step(run)) == {"platform_index", "scan"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="compares with the CPU's form")
def test_the_form_traced_alone_gives_the_bits_of_all_of_them():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((8, 6, 5, 4), (3, 3, 1, 4), (8, 4))
    x_NHWC, kernel, scale_NC = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))

    def of(platform):
        @jax.jit
        def value_and_gradients(x_NHWC, kernel):
            def loss(x_NHWC, kernel):
                y_NHWC = convolve(DEPTHWISE, LIBRARY, x_NHWC, kernel, Before(scale_NC, 1 - scale_NC, jnp.tanh))
                mean_NC, var_NC = instance_moments(y_NHWC)
                return (mean_NC * var_NC).sum()

            with tracing_for(platform):
                return jax.value_and_grad(loss, argnums=(0, 1))(x_NHWC, kernel)

        return jax.device_get(value_and_gradients(x_NHWC, kernel))

    alone, all_forms, elsewhere = (jax.tree.leaves(of(platform)) for platform in ("cpu", "", "gpu"))
    jax.tree.map(np.testing.assert_array_equal, alone, all_forms)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), alone, elsewhere)
    assert any(np.any(a != e) for a, e in zip(alone, elsewhere, strict=True))
