"""Convolutions of the backbones: without bias, with PyTorch's symmetric padding, fast and frugal on CPUs too.

Kernels are float32 [kh, kw, in / groups, out]. Compute and output are in `dtype` (the input's own when None).

A convolution can apply a norm layer and an activation to its input itself (`Before`). The backward pass then keeps only
the raw input and recomputes the rest, which halves the memory of training. On a CPU it recomputes a few images at a
time. That code is written out because XLA's CPU compiler undoes `jax.checkpoint` outside of loops.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from metabin_jax.runtime.platforms import by_platform

Array = jax.Array
Convolution = Callable[[Array, Array], Array]  # (x_NHWC, kernel) -> y_NHWC

# He et al. 2015 by fan-out, as in torchvision for both backbones.
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
PATCH = 32  # values of a patch up to which a k x k convolution is a matrix product of patches
GROUP = 4  # images per step of a kernel's gradient; measured: 2 to 8 are equally fast


class Before(NamedTuple):
    """act(x * scale + shift), to be applied to the input x first; scale and shift [N, C] or [1, C]."""

    scale_NC: Array
    shift_NC: Array
    act: Callable[[Array], Array]


class Conv(nn.Module):
    """k x k convolution with padding k // 2.

    For k = 1 it is ONE matrix product, twice as fast on a CPU. So is the convolution of an image. The library is slow
    at so few channels: on a CPU the gradient of a stem's kernel then takes a third to a tenth of its time.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x_NHWC: Array, before: Before | None = None) -> Array:
        k = self.kernel_size
        kernel = self.param("kernel", kernel_init, (k, k, x_NHWC.shape[-1], self.features), jnp.float32)
        by = by_patches if k * k * x_NHWC.shape[-1] <= PATCH else by_library
        conv: Convolution = functools.partial(by, stride=self.stride)
        if k == 1:
            x_NHWC, conv = x_NHWC[:, :: self.stride, :: self.stride], pointwise
        return convolve(conv, conv, x_NHWC, kernel.astype(self.dtype or x_NHWC.dtype), before)


class DepthwiseConv(nn.Module):
    """3 x 3 convolution with one kernel per channel, padding 1."""

    stride: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x_NHWC: Array, before: Before | None = None) -> Array:
        # Fan-out is 9, the outputs that one kernel feeds, so the out axis must not be the channels.
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (3, 3, 1, x_NHWC.shape[-1]), jnp.float32)
        shifts, library = (functools.partial(conv, stride=self.stride) for conv in (depthwise_by_shifts, by_library))
        return convolve(shifts, library, x_NHWC, kernel.astype(self.dtype or x_NHWC.dtype), before)


def by_library(x_NHWC: Array, kernel: Array, stride: int) -> Array:
    """XLA's convolution; depthwise if the kernel has one input channel."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x_NHWC,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x_NHWC.shape[-1] // kernel.shape[2],
    )


def by_patches(x_NHWC: Array, kernel: Array, stride: int) -> Array:
    """The convolution as a matrix product of all patches [N, H', W', k * k * C] with the kernel."""
    k, (height, width) = kernel.shape[0], x_NHWC.shape[1:3]
    padded = jnp.pad(x_NHWC, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    shifts = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(k) for j in range(k)]
    return pointwise(jnp.concatenate(shifts, axis=3), kernel.reshape(1, 1, -1, kernel.shape[3]))


def depthwise_by_shifts(x_NHWC: Array, kernel_331C: Array, stride: int) -> Array:
    """The depthwise convolution as nine shifted multiply-adds: XLA's own is very slow on a CPU."""
    height, width = x_NHWC.shape[1:3]
    padded = jnp.pad(x_NHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps_9C = kernel_331C.reshape(9, 1, 1, 1, -1)
    shifts = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.add, (shift * tap for shift, tap in zip(shifts, taps_9C, strict=True)))


def pointwise(x_NHWC: Array, kernel_11CD: Array) -> Array:
    return (x_NHWC.reshape(-1, x_NHWC.shape[-1]) @ kernel_11CD[0, 0]).reshape(*x_NHWC.shape[:3], kernel_11CD.shape[3])


def convolve(
    cpu: Convolution, elsewhere: Convolution, x_NHWC: Array, kernel: Array, before: Before | None = None
) -> Array:
    """The convolution of x after `before`, computed in the kernel's dtype: by `cpu` on a CPU."""
    act, dtype = before and before.act, kernel.dtype
    coefficients = [jnp.broadcast_to(a, (x_NHWC.shape[0], a.shape[1])) for a in before[:2]] if before else []

    def prepare(x_NHWC: Array, *coefficients: Array) -> Array:
        if act:
            scale_NC, shift_NC = coefficients
            x_NHWC = act(x_NHWC * scale_NC[:, None, None, :] + shift_NC[:, None, None, :])
        return x_NHWC.astype(dtype)

    plain = functools.partial(_plain, prepare, elsewhere)
    default = jax.checkpoint(plain) if before else plain
    return by_platform(kernel, x_NHWC, *coefficients, cpu=functools.partial(_frugal, prepare, cpu), default=default)


def _plain(prepare: Callable[..., Array], conv: Convolution, kernel: Array, *per_image: Array) -> Array:
    return conv(prepare(*per_image), kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _frugal(prepare: Callable[..., Array], conv: Convolution, kernel: Array, *per_image: Array) -> Array:
    """`_plain`, but the gradient in the kernel keeps the raw input and recomputes `prepare`.

    The derivative below consists of plain JAX functions, so it differentiates to any order in both modes.
    """
    return _plain(prepare, conv, kernel, *per_image)


@functools.partial(_frugal.defjvp, symbolic_zeros=True)
def _frugal_jvp(prepare, conv, primals, tangents):
    kernel, *per_image = primals
    kernel_dot, *per_image_dot = tangents
    if all(isinstance(dot, SymbolicZero) for dot in per_image_dot):
        out = _plain(prepare, conv, *primals)
        out_dot = jnp.zeros_like(out)
    else:
        pairs = zip(per_image, per_image_dot, strict=True)
        dots = [jnp.zeros_like(primal) if isinstance(dot, SymbolicZero) else dot for primal, dot in pairs]
        prepared, prepared_dot = jax.jvp(prepare, tuple(per_image), tuple(dots))
        out, out_dot = conv(prepared, kernel), conv(prepared_dot, kernel)
    if not isinstance(kernel_dot, SymbolicZero):
        out_dot += _by_groups(functools.partial(_plain, prepare, conv), kernel_dot, *per_image)
    return out, out_dot


def _by_groups(f: Callable[..., Array], kernel: Array, *per_image: Array) -> Array:
    """f(kernel, *per_image), a few images at a time.

    It exists for its transpose in the kernel, which sums over the groups, each in the processor's cache. The
    checkpoint prepares each group again instead of storing all of them.
    """
    size = math.gcd(GROUP, per_image[0].shape[0])
    one_group = jax.checkpoint(f, prevent_cse=False)
    groups = tuple(a.reshape(-1, size, *a.shape[1:]) for a in per_image)
    out = jax.lax.scan(lambda _, images: (None, one_group(kernel, *images)), None, groups)[1]
    return out.reshape(-1, *out.shape[2:])
