"""MobileNetV2 ([37], Sandler et al. 2018) in the paper's variant and in the standard one, for re-identification.

In both the last stride is 1, so a 256 x 128 image gives a 16 x 8 map, and the head is never narrower than at width 1,
as in torchreid, torchvision and the released MetaBIN. They differ in channels and expansion:

- paper: int(c * width) channels; EVERY block has an expansion convolution. Width 1.4: 53 norm layers, 23,822 channels.
- standard (torchvision, timm, Keras): channels rounded to multiples of 8; a block with t = 1 has no expansion
  convolution. 52 norm layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metabin_jax.models import mixstyle
from metabin_jax.models.convolution import Before, Conv, DepthwiseConv
from metabin_jax.norm import NormFactory


class Stage(NamedTuple):
    """`blocks` inverted residuals with t = `expansion`; the first has `stride`."""

    expansion: int
    features: int
    blocks: int
    stride: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 1),
    Stage(6, 320, 1, 1),
)
IMAGENET_STAGES = (*STAGES[:5], STAGES[5]._replace(stride=2), STAGES[6])  # of Sandler et al.; torchreid keeps them


def round_to_8(channels: float) -> int:
    """The nearest multiple of 8 that is at least 8 and at least 90 % of `channels` (Sandler et al. 2018)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """1 x 1 expansion, 3 x 3 depthwise, linear 1 x 1 projection; a residual if the shape stays the same."""

    features: int
    expansion: int
    stride: int
    expand_always: bool
    norm: NormFactory
    depth: float
    opens: bool  # see NormFactory
    act: Callable
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_NHWC: jax.Array, train: bool) -> jax.Array:
        def normalised(name: str, y_NHWC: jax.Array, opens: bool) -> Before:
            return Before(*self.norm(self.depth, name, opens).coefficients(y_NHWC, train), self.act)

        channels = x_NHWC.shape[-1]
        y_NHWC, before = x_NHWC, None
        expands = self.expansion != 1 or self.expand_always
        if expands:
            y_NHWC = Conv(channels * self.expansion, 1, dtype=self.dtype, name="expand")(x_NHWC)
            before = normalised("expand_norm", y_NHWC, self.opens)
        y_NHWC = DepthwiseConv(self.stride, dtype=self.dtype, name="depthwise")(y_NHWC, before)
        before = normalised("depthwise_norm", y_NHWC, self.opens and not expands)
        y_NHWC = Conv(self.features, 1, dtype=self.dtype, name="project")(y_NHWC, before)
        y_NHWC = self.norm(self.depth, name="project_norm")(y_NHWC, train)
        keeps_shape = self.stride == 1 and self.features == channels
        return x_NHWC + y_NHWC if keeps_shape else y_NHWC


class MobileNetV2(nn.Module):
    """image [N, H, W, 3] -> map [N, H / 16, W / 16, head]. `stages`, `stem` and `head` give channels at width 1.

    mixes_styles: apply MixStyle after the first stages.
    """

    norm: NormFactory
    width: float = 1.0
    standard: bool = False
    stages: tuple[Stage, ...] = STAGES
    stem: int = 32
    head: int = 1280
    act: Callable = nn.relu6
    mixes_styles: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, image_NHWC: jax.Array, train: bool) -> jax.Array:
        scaled = round_to_8 if self.standard else int
        last = len(self.stages) + 2
        x_NHWC = Conv(scaled(self.stem * self.width), 3, 2, dtype=self.dtype, name="stem")(image_NHWC)
        x_NHWC = self.act(self.norm(1 / last, name="stem_norm")(x_NHWC, train))
        for number, stage in enumerate(self.stages, start=2):
            for block in range(stage.blocks):
                x_NHWC = InvertedResidual(
                    features=scaled(stage.features * self.width),
                    expansion=stage.expansion,
                    stride=stage.stride if block == 0 else 1,
                    expand_always=not self.standard,
                    norm=self.norm,
                    depth=number / last,
                    opens=number <= len(self.stages),
                    act=self.act,
                    dtype=self.dtype,
                    name=f"stage{number}_block{block}",
                )(x_NHWC, train)
            if self.mixes_styles and number in mixstyle.STAGES:
                x_NHWC = mixstyle.MixStyle(name=f"stage{number}_mixstyle")(x_NHWC, train)
        head = scaled(self.head * max(1.0, self.width))
        x_NHWC = Conv(head, 1, dtype=self.dtype, name="head")(x_NHWC)
        return self.act(self.norm(1.0, name="head_norm")(x_NHWC, train))
