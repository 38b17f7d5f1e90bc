"""Batch-instance normalisation (Eq. 1) and the layers it is compared with (Table 4).

For one image n and one channel c every layer here is affine in x, so each is computed as ONE scale and ONE shift per
(n, c): y = x * s[n, c] + t[n, c]. The batch moments follow from the instance moments, so x is read once more only to
be scaled.

Moments are biased (divided by the count) except the running variance, which is unbiased as in PyTorch. They are
float32 when x is narrower and keep x's dtype when it is float64. `momentum` is PyTorch's: the weight of the NEW value.
"""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from metabin_jax.runtime.platforms import by_platform

Array = jax.Array
Coefficients = tuple[Array, Array]


def instance_moments(x_NHWC: Array) -> tuple[Array, Array]:
    """Mean and biased variance [N, C] over H and W, differentiable to any order.

    E[x^2] - E[x]^2 cancels in float32, so squares are taken about a point near the mean. A GPU waits for memory: there
    one pass over x, about the mean of a row. A CPU adds up a sum at a time: there two, about the mean itself.
    """
    return by_platform(x_NHWC, cpu=_moments_about_mean, default=_moments_about_row)


def _moments_about_mean(x_NHWC: Array) -> tuple[Array, Array]:
    """The last term of the variance is 0 and carries the mean's part of its derivatives for [N, C] values."""
    x_NHWC = x_NHWC.astype(jnp.promote_types(x_NHWC.dtype, jnp.float32))
    mean_NC = x_NHWC.mean((1, 2))
    centre_NC = jax.lax.stop_gradient(mean_NC)
    square_NC = jnp.square(x_NHWC - centre_NC[:, None, None, :]).mean((1, 2))
    return mean_NC, square_NC - jnp.square(mean_NC - centre_NC)


def _moments_about_row(x_NHWC: Array) -> tuple[Array, Array]:
    """About the mean of each image's middle row (shifted data, Chan et al. 1983).

    That is at most sqrt(H - 1) deviations from the mean, mostly less than one, which bounds what cancels. The result
    does not depend on the row, and so do its derivatives not.
    """
    wide = jnp.promote_types(x_NHWC.dtype, jnp.float32)
    row_NC = jax.lax.stop_gradient(x_NHWC[:, x_NHWC.shape[1] // 2].astype(wide).mean(1))
    shifted_NHWC = x_NHWC.astype(wide) - row_NC[:, None, None, :]
    mean_NC = shifted_NHWC.mean((1, 2))
    return mean_NC + row_NC, jnp.square(shifted_NHWC).mean((1, 2)) - jnp.square(mean_NC)


def batch_moments(mean_NC: Array, var_NC: Array) -> tuple[Array, Array]:
    """Mean and biased variance [C] over N, H, W from the instance moments: the law of total variance."""
    mean_1C = mean_NC.mean(0, keepdims=True)
    return mean_1C[0], (var_NC + jnp.square(mean_NC - mean_1C)).mean(0)


class _Norm(nn.Module):
    """What the layers share. Call: (x_NHWC [N, H, W, C], train: bool) -> the same shape."""

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    def vector(self, name: str, init: nn.initializers.Initializer, channels: int) -> Array:
        return self.param(name, init, (channels,), jnp.float32)

    def standardiser(self, mean: Array, var: Array) -> tuple[Array, Array]:
        """Scale and shift that give these moments mean 0 and variance 1."""
        scale = jax.lax.rsqrt(var + self.epsilon)
        return scale, -mean * scale

    def batch_standardiser(self, x_NHWC: Array, batch: tuple[Array, Array] | None) -> tuple[Array, Array]:
        """Scale and shift [C] by these moments of the batch, which update the running ones; None: by the running."""
        channels = x_NHWC.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if batch is None:
            return self.standardiser(running_mean.value, running_var.value)
        count = x_NHWC.size // channels
        if count < 2:
            raise ValueError(f"batch statistics need 2 values per channel or more, got x of shape {x_NHWC.shape}")
        mean_C, var_C = batch
        if not self.is_initializing():
            keep = 1 - self.momentum
            unbiased_C = var_C * (count / (count - 1))
            running_mean.value = keep * running_mean.value + self.momentum * mean_C
            running_var.value = keep * running_var.value + self.momentum * unbiased_C
        return self.standardiser(mean_C, var_C)

    def mix(self, moments: tuple[Array, Array], batch_C: Array, instance_C: Array, shift_C: Array) -> Coefficients:
        """Those of y = batch_C * x + instance_C * xI + shift_C, xI being x by each image's own moments."""
        in_NC, in_shift_NC = self.standardiser(*moments)
        # One broadcast of each [C] vector: its gradient is then one sum over N.
        instance_NC = jnp.broadcast_to(instance_C[None], in_NC.shape)
        return batch_C[None] + instance_NC * in_NC, shift_C[None] + instance_NC * in_shift_NC

    def coefficients(self, x_NHWC: Array, train: bool) -> Coefficients:
        """The layer as scale and shift, each [N, C] or [1, C], in the moments' precision: y = x * scale + shift."""
        raise NotImplementedError

    def __call__(self, x_NHWC: Array, train: bool) -> Array:
        scale_NC, shift_NC = self.coefficients(x_NHWC, train)
        y_NHWC = x_NHWC * scale_NC[:, None, None, :] + shift_NC[:, None, None, :]
        return y_NHWC.astype(self.dtype or x_NHWC.dtype)


class BatchInstanceNorm(_Norm):
    """Eq. 1: y = rho * (gB * xB + bB) + (1 - rho) * (gI * xI + bI), one rho in [0, 1] per channel.

    Collections: params bn_scale, bn_bias, in_scale, in_bias [C]; batch_stats mean, var [C]; rho rho [C], which starts
    at 1 (all BN). xB uses batch moments over N, H, W when `train`, else the running ones; xI always each image's own.
    The layer does not clip rho: that belongs to whoever updates it. Float32 vectors; x of any float dtype.
    Raises ValueError when train and N * H * W < 2.
    """

    @nn.compact
    def coefficients(self, x_NHWC: Array, train: bool) -> Coefficients:
        chex.assert_rank(x_NHWC, 4)
        channels = x_NHWC.shape[-1]
        bn_scale_C = self.vector("bn_scale", nn.initializers.ones, channels)
        bn_bias_C = self.vector("bn_bias", nn.initializers.zeros, channels)
        in_scale_C = self.vector("in_scale", nn.initializers.ones, channels)
        in_bias_C = self.vector("in_bias", nn.initializers.zeros, channels)
        rho_C = self.variable("rho", "rho", jnp.ones, (channels,), jnp.float32).value

        moments = instance_moments(x_NHWC)
        bn_C, bn_shift_C = self.batch_standardiser(x_NHWC, batch_moments(*moments) if train else None)
        shift_C = rho_C * (bn_scale_C * bn_shift_C + bn_bias_C) + (1 - rho_C) * in_bias_C
        return self.mix(moments, rho_C * bn_scale_C * bn_C, (1 - rho_C) * in_scale_C, shift_C)


class SharedBatchInstanceNorm(_Norm):
    """BIN, Nam and Kim 2018 ([34]): y = g * (rho * xB + (1 - rho) * xI) + b, one affine for both branches.

    Collections: params scale, bias [C]; batch_stats mean, var [C]; rho rho [C], which starts at 1.
    """

    @nn.compact
    def coefficients(self, x_NHWC: Array, train: bool) -> Coefficients:
        chex.assert_rank(x_NHWC, 4)
        channels = x_NHWC.shape[-1]
        scale_C = self.vector("scale", nn.initializers.ones, channels)
        bias_C = self.vector("bias", nn.initializers.zeros, channels)
        rho_C = self.variable("rho", "rho", jnp.ones, (channels,), jnp.float32).value

        moments = instance_moments(x_NHWC)
        bn_C, bn_shift_C = self.batch_standardiser(x_NHWC, batch_moments(*moments) if train else None)
        shift_C = scale_C * rho_C * bn_shift_C + bias_C
        return self.mix(moments, scale_C * rho_C * bn_C, scale_C * (1 - rho_C), shift_C)


class BatchNorm(_Norm):
    """Plain BN. params scale, bias [C] (no bias when use_bias is False); batch_stats mean, var [C]."""

    use_bias: bool = True

    @nn.compact
    def coefficients(self, x_NHWC: Array, train: bool) -> Coefficients:
        chex.assert_rank(x_NHWC, 4)
        channels = x_NHWC.shape[-1]
        scale_C = self.vector("scale", nn.initializers.ones, channels)
        batch = batch_moments(*instance_moments(x_NHWC)) if train else None
        bn_C, bn_shift_C = self.batch_standardiser(x_NHWC, batch)
        shift_C = scale_C * bn_shift_C
        if self.use_bias:
            shift_C = shift_C + self.vector("bias", nn.initializers.zeros, channels)
        return (scale_C * bn_C)[None], shift_C[None]


class InstanceNorm(_Norm):
    """Plain IN with an affine: params scale, bias [C]. Nothing is running, so `train` changes nothing."""

    @nn.compact
    def coefficients(self, x_NHWC: Array, train: bool) -> Coefficients:
        chex.assert_rank(x_NHWC, 4)
        channels = x_NHWC.shape[-1]
        scale_C = self.vector("scale", nn.initializers.ones, channels)
        bias_C = self.vector("bias", nn.initializers.zeros, channels)
        return self.mix(instance_moments(x_NHWC), jnp.zeros_like(scale_C), scale_C, bias_C)


class HalfNorm(_Norm):
    """Table 4's "BN+IN half": BN on the first C // 2 channels, IN on the others, each with its own variables."""

    @nn.compact
    def coefficients(self, x_NHWC: Array, train: bool) -> Coefficients:
        chex.assert_rank(x_NHWC, 4)
        bn = BatchNorm(self.momentum, self.epsilon, self.dtype, name="bn")
        instance = InstanceNorm(self.momentum, self.epsilon, self.dtype, name="in")
        half = x_NHWC.shape[-1] // 2
        halves = bn.coefficients(x_NHWC[..., :half], train), instance.coefficients(x_NHWC[..., half:], train)
        images = x_NHWC.shape[0]
        scales, shifts = zip(
            *[[jnp.broadcast_to(a, (images, a.shape[1])) for a in each] for each in halves], strict=True
        )
        return jnp.concatenate(scales, axis=1), jnp.concatenate(shifts, axis=1)


@dataclasses.dataclass(frozen=True)
class NormFactory:
    """Makes the layer for a place in the backbone, so that backbones know no normaliser by name.

    Called with `depth`, the stage's number over the number of stages, in (0, 1].
    """

    shallow: type[_Norm]
    deep: type[_Norm]
    dtype: jnp.dtype | None = None

    def __call__(self, depth: float, name: str) -> _Norm:
        layer = self.shallow if depth <= 2 / 3 else self.deep
        return layer(dtype=self.dtype, name=name)


# DualNorm ([20]) as the MetaBIN authors run it: IN in stages 1-6 of 9, BN in 7-9.
LAYERS: dict[str, tuple[type[_Norm], type[_Norm]]] = {
    "bn": (BatchNorm, BatchNorm),
    "in": (InstanceNorm, InstanceNorm),
    "half": (HalfNorm, HalfNorm),
    "dualnorm": (InstanceNorm, BatchNorm),
    "bin": (SharedBatchInstanceNorm, SharedBatchInstanceNorm),
    "metabin": (BatchInstanceNorm, BatchInstanceNorm),
}


def create(name: str, dtype: jnp.dtype | None = None) -> NormFactory:
    """The factory for one of LAYERS. Raises ValueError for another name."""
    if name not in LAYERS:
        raise ValueError(f"norm must be one of {', '.join(LAYERS)}; got {name!r}")
    return NormFactory(*LAYERS[name], dtype=dtype)
