"""Convolutions as the backbones use them: no bias, PyTorch's symmetric padding, fast on a CPU too.

Kernels are float32 [kh, kw, in / groups, out]; compute and output are in `dtype` (the input's own when None).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Array = jax.Array

# He et al. 2015 by fan-out, as torchvision starts both backbones.
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """k x k convolution with padding k // 2."""

    features: int
    kernel_size: int
    stride: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x_NHWC: Array) -> Array:
        k, pad = self.kernel_size, self.kernel_size // 2
        kernel = self.param("kernel", kernel_init, (k, k, x_NHWC.shape[-1], self.features), jnp.float32)
        dtype = self.dtype or x_NHWC.dtype
        return jax.lax.conv_general_dilated(
            x_NHWC.astype(dtype),
            kernel.astype(dtype),
            (self.stride, self.stride),
            [(pad, pad), (pad, pad)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class PointwiseConv(nn.Module):
    """1 x 1 convolution as ONE matrix product over N * H * W rows, which a CPU runs twice as fast as a convolution."""

    features: int
    stride: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x_NHWC: Array) -> Array:
        kernel = self.param("kernel", kernel_init, (1, 1, x_NHWC.shape[-1], self.features), jnp.float32)
        dtype = self.dtype or x_NHWC.dtype
        x_NHWC = x_NHWC[:, :: self.stride, :: self.stride].astype(dtype)
        y_RC = x_NHWC.reshape(-1, x_NHWC.shape[-1]) @ kernel[0, 0].astype(dtype)
        return y_RC.reshape(*x_NHWC.shape[:3], self.features)


class DepthwiseConv(nn.Module):
    """3 x 3 convolution of every channel with its own kernel, padding 1."""

    stride: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x_NHWC: Array) -> Array:
        # Fan-out counts the outputs one kernel feeds: 9, so the shape's last axis must not be the channels.
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, (3, 3, 1, x_NHWC.shape[-1]), jnp.float32)
        dtype = self.dtype or x_NHWC.dtype
        return depthwise_conv(x_NHWC.astype(dtype), kernel.astype(dtype), self.stride)


def depthwise_conv(x_NHWC: Array, kernel_331C: Array, stride: int) -> Array:
    """3 x 3 depthwise convolution, padding 1: the library's, except on a CPU, where XLA's is very slow."""
    return jax.lax.platform_dependent(
        x_NHWC,
        kernel_331C,
        cpu=partial(depthwise_by_shifts, stride=stride),
        default=partial(_depthwise_by_library, stride=stride),
    )


def _depthwise_by_library(x_NHWC: Array, kernel_331C: Array, stride: int) -> Array:
    return jax.lax.conv_general_dilated(
        x_NHWC,
        kernel_331C,
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x_NHWC.shape[-1],
    )


def _nine_shifts(x_NHWC: Array, stride: int) -> list[Array]:
    """The input each kernel tap sees: nine arrays of the output's shape."""
    height, width = x_NHWC.shape[1:3]
    padded = jnp.pad(x_NHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def depthwise_by_shifts(x_NHWC: Array, kernel_331C: Array, stride: int) -> Array:
    """The same convolution as nine shifted multiply-adds.

    Its derivative is written below in plain JAX functions, so it differentiates to any order in both modes.
    """
    taps_9C = kernel_331C.reshape(9, 1, 1, 1, -1)
    return sum(shifted * tap for shifted, tap in zip(_nine_shifts(x_NHWC, stride), taps_9C, strict=True))


@partial(depthwise_by_shifts.defjvp, symbolic_zeros=True)
def _depthwise_jvp(stride, primals, tangents):
    x_NHWC, kernel_331C = primals
    dx_NHWC, dkernel_331C = tangents
    out = depthwise_by_shifts(x_NHWC, kernel_331C, stride)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx_NHWC, SymbolicZero):
        tangent += depthwise_by_shifts(dx_NHWC, kernel_331C, stride)
    if not isinstance(dkernel_331C, SymbolicZero):
        tangent += _depthwise_by_groups(x_NHWC, dkernel_331C, stride)
    return out, tangent


def _depthwise_by_groups(x_NHWC: Array, kernel_331C: Array, stride: int) -> Array:
    """The same convolution, a few images at a time, with one kernel per column of pixels.

    Its transpose is what counts: it adds nine [W, C] accumulators up over the groups and reduces them once at the end,
    where the transpose of the nine shifts reduces nine whole products over N, H and W. The checkpoint makes it cut the
    shifts anew instead of storing all of them.
    """
    group = 4 if x_NHWC.shape[0] % 4 == 0 else x_NHWC.shape[0]  # measured: 4 to 8 images are fastest
    width = -(-x_NHWC.shape[2] // stride)
    taps_911WC = jnp.broadcast_to(kernel_331C.reshape(9, 1, 1, 1, -1), (9, 1, 1, width, x_NHWC.shape[-1]))

    @partial(jax.checkpoint, prevent_cse=False)
    def one_group(taps_911WC, x_NHWC):
        shifts = _nine_shifts(x_NHWC, stride)
        return sum(shifted * tap_11WC for shifted, tap_11WC in zip(shifts, taps_911WC, strict=True))

    groups = x_NHWC.reshape(-1, group, *x_NHWC.shape[1:])
    out = jax.lax.scan(lambda _, x_NHWC: (None, one_group(taps_911WC, x_NHWC)), None, groups)[1]
    return out.reshape(-1, *out.shape[2:])
