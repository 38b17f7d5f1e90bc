"""Batch-instance normalisation (Eq. 1) and the layers it is compared with (Table 4).

Every layer here is affine in x for one image n and one channel c. It is computed as ONE scale and ONE shift per (n, c):
y = x * s[n, c] + t[n, c]. The batch moments follow from the instance moments, so x is read twice: for its instance
moments and to be scaled.

Moments are biased (divided by the count) except the running variance, which is unbiased as in PyTorch. They are
float32 when x is narrower and keep x's dtype when it is float64. `momentum` is PyTorch's: the weight of the NEW value.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from metabin_jax.runtime.platforms import by_platform

Array = jax.Array


def instance_moments(x_NHWC: Array) -> tuple[Array, Array]:
    """Mean and biased variance [N, C] over H and W, differentiable to any order.

    E[x^2] - E[x]^2 cancels in float32, so squares are taken about a point near the mean. GPUs are limited by memory
    bandwidth, so they take one pass over x, about the mean of a row. CPUs compute one sum at a time, so they take two
    passes, about the mean itself.
    """
    return by_platform(x_NHWC, cpu=_moments_about_mean, default=_moments_about_row)


def _moments_about_mean(x_NHWC: Array) -> tuple[Array, Array]:
    """The last term of the variance is 0. It adds the mean's part of the derivatives, at the cost of [N, C] values."""
    x_NHWC = x_NHWC.astype(jnp.promote_types(x_NHWC.dtype, jnp.float32))
    mean_NC = x_NHWC.mean((1, 2))
    centre_NC = jax.lax.stop_gradient(mean_NC)
    square_NC = jnp.square(x_NHWC - centre_NC[:, None, None, :]).mean((1, 2))
    return mean_NC, square_NC - jnp.square(mean_NC - centre_NC)


def _moments_about_row(x_NHWC: Array) -> tuple[Array, Array]:
    """About the mean of each image's middle row (shifted data, Chan et al. 1983).

    The row's mean is at most sqrt(H - 1) standard deviations from the mean, mostly less than one. That bounds what
    cancels. Neither the result nor its derivatives depend on the row.
    """
    wide = jnp.promote_types(x_NHWC.dtype, jnp.float32)
    row_NC = jax.lax.stop_gradient(x_NHWC[:, x_NHWC.shape[1] // 2].astype(wide).mean(1))
    shifted_NHWC = x_NHWC.astype(wide) - row_NC[:, None, None, :]
    mean_NC = shifted_NHWC.mean((1, 2))
    return mean_NC + row_NC, jnp.square(shifted_NHWC).mean((1, 2)) - jnp.square(mean_NC)


def _check(x_NHWC: Array) -> None:
    """Raises AssertionError for another rank than 4, and TypeError for integers, to which the output would be cut."""
    chex.assert_rank(x_NHWC, 4, custom_message="a norm layer takes [N, H, W, C]")
    if not jnp.issubdtype(x_NHWC.dtype, jnp.floating):
        raise TypeError(f"a norm layer takes floats, not {x_NHWC.dtype}")


class Affine(NamedTuple):
    """A norm layer as y = batch * x + instance * xI + shift, each [C]; xI is x standardised image by image.

    instance_C: None for a layer without an instance branch, which then needs no instance moments.
    """

    batch_C: Array
    instance_C: Array | None
    shift_C: Array


class BatchMoments(NamedTuple):
    """Mean, biased and unbiased variance of a batch, each [C]."""

    mean_C: Array
    var_C: Array
    unbiased_C: Array


def batch_moments(mean_NC: Array, var_NC: Array, count: int) -> BatchMoments:
    """From the instance moments, by the law of total variance. count: the values per channel, N * H * W."""
    mean_1C = mean_NC.mean(0, keepdims=True)
    mean_C, var_C = mean_1C[0], (var_NC + jnp.square(mean_NC - mean_1C)).mean(0)
    return BatchMoments(mean_C, var_C, var_C * (count / (count - 1)))


class Norm(nn.Module):
    """The base class of norm layers. Call: (x_NHWC [N, H, W, C], train: bool) -> the same shape.

    A subclass provides one compact method, `affine`. It declares the layer's variables, and takes the batch branch from
    `batch_branch`. Training, evaluation and export all follow from it, as docs/extending.md shows.

    Raises ValueError when train and N * H * W < 2.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    def affine(self, channels: int, batch: BatchMoments | None = None) -> Affine:
        """The layer's affine form. batch: moments of the batch in training; None in evaluation mode."""
        raise NotImplementedError

    def vector(self, name: str, init: nn.initializers.Initializer, channels: int) -> Array:
        """The float32 parameter `name` [C]."""
        return self.param(name, init, (channels,), jnp.float32)

    def batch_branch(self, channels: int, batch: BatchMoments | None) -> tuple[Array, Array]:
        """Scale and shift [C] that standardise by the running moments or, if given, by `batch`, which updates them."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if batch is None:
            return self.standardiser(mean.value, var.value)
        if not self.is_initializing():
            keep = 1 - self.momentum
            mean.value = keep * mean.value + self.momentum * batch.mean_C
            var.value = keep * var.value + self.momentum * batch.unbiased_C
        return self.standardiser(batch.mean_C, batch.var_C)

    def standardiser(self, mean: Array, var: Array) -> tuple[Array, Array]:
        """Scale and shift that turn these moments into mean 0 and variance 1."""
        scale = jax.lax.rsqrt(var + self.epsilon)
        return scale, -mean * scale

    def coefficients(self, x_NHWC: Array, train: bool) -> tuple[Array, Array]:
        """Scale and shift of y = x * scale + shift, each [N, C] or [1, C], in the moments' precision."""
        _check(x_NHWC)
        mean_NC, var_NC = instance_moments(x_NHWC)
        batch, channels = None, x_NHWC.shape[-1]
        if train:
            count = x_NHWC.size // channels
            if count < 2:
                raise ValueError(f"batch statistics need 2 values per channel or more, got x of shape {x_NHWC.shape}")
            batch = batch_moments(mean_NC, var_NC, count)
        batch_C, instance_C, shift_C = self.affine(channels, batch)
        if instance_C is None:
            return batch_C[None], shift_C[None]
        in_NC, in_shift_NC = self.standardiser(mean_NC, var_NC)
        # One broadcast of each [C] vector: its gradient is then one sum over N.
        instance_NC = jnp.broadcast_to(instance_C[None], in_NC.shape)
        return batch_C[None] + instance_NC * in_NC, shift_C[None] + instance_NC * in_shift_NC

    def __call__(self, x_NHWC: Array, train: bool) -> Array:
        scale_NC, shift_NC = self.coefficients(x_NHWC, train)
        y_NHWC = x_NHWC * scale_NC[:, None, None, :] + shift_NC[:, None, None, :]
        return y_NHWC.astype(self.dtype or x_NHWC.dtype)


class BatchInstanceNorm(Norm):
    """Eq. 1: y = rho * (gB * xB + bB) + (1 - rho) * (gI * xI + bI), one rho in [0, 1] per channel.

    Collections: params bn_scale, bn_bias, in_scale, in_bias [C]; batch_stats mean, var [C]; rho rho [C], which starts
    at 1 (all BN). xB uses batch moments over N, H, W when `train`, else the running ones; xI always each image's own.
    The layer does not clip rho: whoever updates rho clips it. Vectors are float32; x has any float dtype.
    """

    @nn.compact
    def affine(self, channels: int, batch: BatchMoments | None = None) -> Affine:
        bn_scale_C = self.vector("bn_scale", nn.initializers.ones, channels)
        bn_bias_C = self.vector("bn_bias", nn.initializers.zeros, channels)
        in_scale_C = self.vector("in_scale", nn.initializers.ones, channels)
        in_bias_C = self.vector("in_bias", nn.initializers.zeros, channels)
        rho_C = self.variable("rho", "rho", jnp.ones, (channels,), jnp.float32).value
        bn_C, bn_shift_C = self.batch_branch(channels, batch)
        shift_C = rho_C * (bn_scale_C * bn_shift_C + bn_bias_C) + (1 - rho_C) * in_bias_C
        return Affine(rho_C * bn_scale_C * bn_C, (1 - rho_C) * in_scale_C, shift_C)


class SharedBatchInstanceNorm(Norm):
    """BIN, Nam and Kim 2018 ([34]): y = g * (rho * xB + (1 - rho) * xI) + b, one affine for both branches.

    Collections: params scale, bias [C]; batch_stats mean, var [C]; rho rho [C], which starts at 1.
    """

    @nn.compact
    def affine(self, channels: int, batch: BatchMoments | None = None) -> Affine:
        scale_C = self.vector("scale", nn.initializers.ones, channels)
        bias_C = self.vector("bias", nn.initializers.zeros, channels)
        rho_C = self.variable("rho", "rho", jnp.ones, (channels,), jnp.float32).value
        bn_C, bn_shift_C = self.batch_branch(channels, batch)
        shift_C = scale_C * rho_C * bn_shift_C + bias_C
        return Affine(scale_C * rho_C * bn_C, scale_C * (1 - rho_C), shift_C)


class BatchNorm(Norm):
    """Plain BN. params scale, bias [C] (no bias when use_bias is False); batch_stats mean, var [C]."""

    use_bias: bool = True

    @nn.compact
    def affine(self, channels: int, batch: BatchMoments | None = None) -> Affine:
        scale_C = self.vector("scale", nn.initializers.ones, channels)
        bn_C, bn_shift_C = self.batch_branch(channels, batch)
        shift_C = scale_C * bn_shift_C
        if self.use_bias:
            shift_C = shift_C + self.vector("bias", nn.initializers.zeros, channels)
        return Affine(scale_C * bn_C, None, shift_C)


class InstanceNorm(Norm):
    """Plain IN with an affine: params scale, bias [C]. It has no running moments, so `train` changes nothing."""

    @nn.compact
    def affine(self, channels: int, batch: BatchMoments | None = None) -> Affine:
        scale_C = self.vector("scale", nn.initializers.ones, channels)
        bias_C = self.vector("bias", nn.initializers.zeros, channels)
        return Affine(jnp.zeros_like(scale_C), scale_C, bias_C)


class HalfNorm(Norm):
    """BN on one half of the channels, IN on the other, each with its own variables.

    BN takes the first C // 2 channels, as in Table 4's "BN+IN half". With `instance_first` IN takes them, as in IBN
    (Pan et al., ECCV 2018). In training each half computes its own coefficients, which saves the work that the affine
    form spends on zeros.
    """

    instance_first: bool = False

    def setup(self) -> None:
        self.bn = BatchNorm(self.momentum, self.epsilon)
        setattr(self, "in", InstanceNorm(self.momentum, self.epsilon))  # the variables' name is a Python keyword

    def halves(self, channels: int) -> list[tuple[Norm, slice]]:
        """Each half's layer and channels, in the order of the channels."""
        layers = [self.bn, getattr(self, "in")]
        slices = slice(0, channels // 2), slice(channels // 2, channels)
        return list(zip(layers[::-1] if self.instance_first else layers, slices, strict=True))

    def affine(self, channels: int, batch: BatchMoments | None = None) -> Affine:
        halves = [
            layer.affine(own.stop - own.start, jax.tree.map(lambda moment_C, own=own: moment_C[own], batch))
            for layer, own in self.halves(channels)
        ]
        filled = [
            half._replace(instance_C=jnp.zeros_like(half.batch_C)) if half[1] is None else half for half in halves
        ]
        return Affine(*map(jnp.concatenate, zip(*filled, strict=True)))

    def coefficients(self, x_NHWC: Array, train: bool) -> tuple[Array, Array]:
        _check(x_NHWC)
        halves = [layer.coefficients(x_NHWC[..., own], train) for layer, own in self.halves(x_NHWC.shape[-1])]
        full = [[jnp.broadcast_to(a, (x_NHWC.shape[0], a.shape[1])) for a in half] for half in halves]
        scale_NC, shift_NC = (jnp.concatenate(pair, axis=1) for pair in zip(*full, strict=True))
        return scale_NC, shift_NC


@dataclasses.dataclass(frozen=True)
class NormFactory:
    """Makes the norm layers of a net.

    shallow, deep: of the first two thirds of the stages, and of the others. opening: of the first layer of each block,
    except in the last stage with blocks; None for the same as in the rest of the stage.
    """

    shallow: Callable[..., Norm]
    deep: Callable[..., Norm]
    opening: Callable[..., Norm] | None = None
    dtype: jnp.dtype | None = None

    def __call__(self, depth: float, name: str, opens: bool = False) -> Norm:
        """depth: the stage's number over the number of stages, in (0, 1]. opens: whether `opening` applies."""
        layer = self.shallow if depth <= 2 / 3 else self.deep
        return ((opens and self.opening) or layer)(dtype=self.dtype, name=name)


# Name -> the layers of shallow stages, of deep stages and, optionally, the `opening` ones. A layer of your own:
# LAYERS["mine"] = (MyNorm, MyNorm).
# DualNorm ([20]) as the MetaBIN authors run it: IN in stages 1-6 of 9, BN in 7-9.
# IBN-a (Pan et al., ECCV 2018): half IN, half BN after the first convolution of a block, BN elsewhere.
Layer = Callable[..., Norm]
LAYERS: dict[str, tuple[Layer, Layer] | tuple[Layer, Layer, Layer]] = {
    "bn": (BatchNorm, BatchNorm),
    "in": (InstanceNorm, InstanceNorm),
    "half": (HalfNorm, HalfNorm),
    "dualnorm": (InstanceNorm, BatchNorm),
    "ibn_a": (BatchNorm, BatchNorm, functools.partial(HalfNorm, instance_first=True)),
    "bin": (SharedBatchInstanceNorm, SharedBatchInstanceNorm),
    "metabin": (BatchInstanceNorm, BatchInstanceNorm),
}


def create(name: str, dtype: jnp.dtype | None = None) -> NormFactory:
    """The factory for one of LAYERS. Raises ValueError for another name."""
    if name not in LAYERS:
        raise ValueError(f"norm must be one of {', '.join(LAYERS)}; got {name!r}")
    shallow, deep, *opening = LAYERS[name]
    return NormFactory(shallow, deep, opening[0] if opening else None, dtype)
