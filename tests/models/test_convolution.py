"""The convolutions written for the CPU."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_options import COMPILE_QUICKLY
from jax.sharding import NamedSharding, PartitionSpec

from metabin_jax.models.convolution import Before, by_library, by_patches, convolve, depthwise_by_shifts, pointwise

jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)


def by_shifts(stride):
    return functools.partial(depthwise_by_shifts, stride=stride), functools.partial(by_library, stride=stride)


def by_patches_of_stride(stride):
    return functools.partial(by_patches, stride=stride), functools.partial(by_library, stride=stride)


LIBRARY = functools.partial(by_library, stride=1)
CONVOLUTIONS = {  # as written for a CPU and by the library, kernel shape, stride
    "depthwise": (*by_shifts(1), (3, 3, 1, 5), 1),
    "depthwise of stride 2": (*by_shifts(2), (3, 3, 1, 5), 2),
    "patches of stride 2": (*by_patches_of_stride(2), (3, 3, 3, 4), 2),
    "pointwise": (pointwise, LIBRARY, (1, 1, 5, 4), 1),
    "full": (LIBRARY, LIBRARY, (3, 3, 5, 4), 1),
}


def library_after(library, act):
    """What `convolve` is to compute, in the plainest words."""

    def run(kernel, x_NHWC, scale_NC=None, shift_NC=None):
        if act is not None:
            x_NHWC = act(jnp.einsum("nhwc,nc->nhwc", x_NHWC, scale_NC) + shift_NC[:, None, None, :])
        return library(x_NHWC, kernel)

    return run


def ours_after(cpu, library, act):
    def run(kernel, x_NHWC, *coefficients):
        before = Before(*coefficients, act) if coefficients else None
        return convolve(cpu, library, x_NHWC, kernel, before)

    return run


def with_derivatives(conv):
    """Value, all gradients and Hessian-vector products in both modes of a function that is linear in nothing."""

    @jit
    def run(primals, tangents, weight):
        def loss(primals):
            return (jnp.tanh(conv(*primals)) * weight).sum()

        def slope(primals):
            return sum(map(jnp.vdot, jax.grad(loss)(primals), tangents))

        return {
            "forward": conv(*primals),
            "gradients": jax.grad(loss)(primals),
            "gradient in the input alone": jax.grad(lambda x: loss((primals[0], x, *primals[2:])))(primals[1]),
            "forward over reverse": jax.jvp(jax.grad(loss), (primals,), (tangents,))[1],
            "reverse over reverse": jax.grad(slope)(primals),
        }

    return lambda *arguments: jax.device_get(run(*arguments))


def draw(images, height, width, kernel_shape, stride, prepared):
    """Primals (kernel, x and, if `prepared`, scale and shift), tangents like them, and a weight like the output."""
    rng = np.random.default_rng([7, images])
    shapes = (kernel_shape, (images, height, width, 5), *[(images, 5)] * (2 if prepared else 0))
    primals, tangents = (tuple(rng.normal(0, 0.5, shape) for shape in shapes) for _ in range(2))
    return primals, tangents, rng.normal(size=(images, -(-height // stride), -(-width // stride), kernel_shape[-1]))


def worst(actual, expected):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)


@pytest.mark.parametrize("act", [None, jnp.tanh], ids=["alone", "prepared"])
@pytest.mark.parametrize(
    ("name", "images", "height", "width"),
    [
        ("depthwise", 8, 5, 7),
        ("depthwise of stride 2", 3, 6, 5),
        ("depthwise of stride 2", 4, 5, 6),
        ("pointwise", 8, 3, 4),
        ("full", 6, 5, 4),
    ],
)
def test_a_convolution_is_the_librarys(name, images, height, width, act):
    cpu, library, kernel_shape, stride = CONVOLUTIONS[name]
    (kernel, *per_image), *others = draw(images, height, width, kernel_shape, stride, prepared=act is not None)
    with jax.enable_x64(True):
        plain = with_derivatives(library_after(library, act))
        actual = with_derivatives(ours_after(cpu, library, act))((kernel, *per_image), *others)
        expected, other = (plain((k, *per_image), *others) for k in (kernel, kernel[..., ::-1]))
    for part in expected:
        assert worst(actual[part], expected[part]) < 1e-12, part
        assert worst(other[part], expected[part]) > 0.1, part
    assert worst(expected["forward over reverse"], expected["reverse over reverse"]) < 1e-12


def test_coefficients_of_all_images_may_be_one_row():
    primals = draw(4, 3, 3, (1, 1, 5, 4), 1, prepared=True)[0]
    kernel, x_NHWC, scale_NC, shift_NC = (primal.astype(np.float32) for primal in primals)
    before = Before(scale_NC[:1], shift_NC[:1], nn.relu6)
    actual = convolve(pointwise, pointwise, x_NHWC, kernel, before)
    expected = nn.relu6(x_NHWC * scale_NC[0] + shift_NC[0]) @ kernel[0, 0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_depthwise_is_the_librarys_except_on_a_cpu(all_forms):
    (kernel, x_NHWC), *_ = draw(2, 5, 7, (3, 3, 1, 5), 1, prepared=False)
    traced = jax.jit(functools.partial(convolve, *by_shifts(1))).trace(x_NHWC, kernel)
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("feature_group_count = 5" in text) == (platform != "cpu")


def test_the_backward_pass_keeps_no_normalised_map():
    """As a program for a CPU: a chain of wide maps must cost one map a layer, where the plain one costs two."""
    cpu, library, *_ = CONVOLUTIONS["pointwise"]
    layers, image = 6, jnp.ones((8, 32, 32, 16))
    one = jnp.ones((8, 16))

    def temporaries(conv):
        def loss(kernels):
            x_NHWC = image
            for kernel in kernels:
                x_NHWC = conv(kernel, x_NHWC, one, one)
            return x_NHWC.sum()

        compiled = jax.jit(jax.grad(loss)).lower([jnp.ones((1, 1, 16, 16))] * layers).compile()
        return compiled.memory_analysis().temp_size_in_bytes / image.nbytes

    ours, plain = temporaries(ours_after(cpu, library, nn.relu6)), temporaries(library_after(pointwise, nn.relu6))
    assert ours < layers + 3
    assert plain > 2 * layers - 2


def test_depthwise_over_two_devices_is_that_of_one():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    arguments = draw(8, 5, 7, (3, 3, 1, 5), 1, prepared=True)
    run = with_derivatives(ours_after(*by_shifts(1), jnp.tanh))
    with jax.enable_x64(True):
        per_image = (split, split, split)
        actual = run(*jax.device_put(arguments, ((whole, *per_image), (whole, *per_image), split)))
        expected = run(*arguments)
    assert worst(actual, expected) < 1e-12
