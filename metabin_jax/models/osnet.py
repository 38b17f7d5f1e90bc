"""OSNet, OSNet-IBN (Zhou et al., ICCV 2019) and OSNet-AIN (Zhou et al., TPAMI 2021) as torchreid publishes them.

A block sends its input through four streams of 1 to 4 light convolutions, weighs the channels of each by one shared
gate, and adds them up. AIN has instance norm at the stem and, in some blocks, before the residual is added. IBN has it
at the stem and, in the first stage, behind the sum.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from metabin_jax import norm as norms
from metabin_jax.models.convolution import Conv, DepthwiseConv
from metabin_jax.norm import NormFactory

STREAMS = 4
STAGES = ((2, 256), (2, 384), (2, 512))  # blocks and channels at width 1
AIN = ((True, True), (False, True), (True, False))  # which blocks of OSNet-AIN have instance norm
STEM, FEATURE = 64, 512


class LightConv(nn.Module):
    """Linear 1 x 1, then depthwise 3 x 3, norm and ReLU."""

    features: int
    norm: NormFactory
    depth: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_NHWC: jax.Array, train: bool) -> jax.Array:
        x_NHWC = Conv(self.features, 1, dtype=self.dtype, name="pointwise")(x_NHWC)
        x_NHWC = DepthwiseConv(dtype=self.dtype, name="depthwise")(x_NHWC)
        return nn.relu(self.norm(self.depth, name="norm")(x_NHWC, train))


class Gate(nn.Module):
    """Weighs each channel by a number in (0, 1) that follows from the means of all channels."""

    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_NHWC: jax.Array) -> jax.Array:
        channels = x_NHWC.shape[-1]
        y_N11C = x_NHWC.mean((1, 2), keepdims=True)
        y_N11C = nn.relu(nn.Conv(channels // 16, (1, 1), dtype=self.dtype, name="fc1")(y_N11C))
        return x_NHWC * nn.sigmoid(nn.Conv(channels, (1, 1), dtype=self.dtype, name="fc2")(y_N11C))


class Block(nn.Module):
    """1 x 1 to a quarter of the channels, the streams, 1 x 1 to `features`, plus the input.

    inside, behind: whether instance norm comes before the input is added, in place of `norm`, or after it.
    """

    features: int
    inside: bool
    behind: bool
    norm: NormFactory
    depth: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_NHWC: jax.Array, train: bool) -> jax.Array:
        middle = self.features // 4
        reduced_NHWC = Conv(middle, 1, dtype=self.dtype, name="reduce")(x_NHWC)
        reduced_NHWC = nn.relu(self.norm(self.depth, name="reduce_norm")(reduced_NHWC, train))
        gate, streams = Gate(self.dtype, name="gate"), []
        for stream in range(1, STREAMS + 1):
            y_NHWC = reduced_NHWC
            for light in range(stream):
                name = f"stream{stream}_light{light}"
                y_NHWC = LightConv(middle, self.norm, self.depth, self.dtype, name=name)(y_NHWC, train)
            streams.append(gate(y_NHWC))
        y_NHWC = Conv(self.features, 1, dtype=self.dtype, name="expand")(sum(streams[1:], streams[0]))
        if self.inside:
            y_NHWC = norms.InstanceNorm(dtype=self.dtype, name="instance_norm")(y_NHWC, train)
        else:
            y_NHWC = self.norm(self.depth, name="expand_norm")(y_NHWC, train)
        if x_NHWC.shape != y_NHWC.shape:
            x_NHWC = Conv(self.features, 1, dtype=self.dtype, name="shortcut")(x_NHWC)
            x_NHWC = self.norm(self.depth, name="shortcut_norm")(x_NHWC, train)
        y_NHWC = x_NHWC + y_NHWC
        if self.behind:
            y_NHWC = norms.InstanceNorm(dtype=self.dtype, name="instance_norm")(y_NHWC, train)
        return nn.relu(y_NHWC)


class OSNet(nn.Module):
    """image [N, H, W, 3] -> map [N, 1, 1, 512], the feature behind OSNet's own fully connected layer.

    ain, ibn: be OSNet-AIN or OSNet-IBN, whose instance norms stay whatever `norm` is; `norm` makes the other layers of
    the convolutions.
    """

    norm: NormFactory
    width: float = 1.0
    ain: bool = False
    ibn: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, image_NHWC: jax.Array, train: bool) -> jax.Array:
        def unit(features: int, name: str, depth: float, x_NHWC: jax.Array) -> jax.Array:
            x_NHWC = Conv(features, 1, dtype=self.dtype, name=name)(x_NHWC)
            return nn.relu(self.norm(depth, name=f"{name}_norm")(x_NHWC, train))

        x_NHWC = Conv(int(STEM * self.width), 7, 2, dtype=self.dtype, name="stem")(image_NHWC)
        stem_norm = norms.InstanceNorm(dtype=self.dtype, name="stem_norm") if self.ain or self.ibn else None
        x_NHWC = nn.relu((stem_norm or self.norm(1 / 5, name="stem_norm"))(x_NHWC, train))
        x_NHWC = nn.max_pool(x_NHWC, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, (blocks, channels) in enumerate(STAGES, start=2):
            features = int(channels * self.width)
            for block in range(blocks):
                inside, behind = self.ain and AIN[stage - 2][block], self.ibn and stage == 2
                name = f"stage{stage}_block{block}"
                x_NHWC = Block(features, inside, behind, self.norm, stage / 5, self.dtype, name=name)(x_NHWC, train)
            if stage < 4:
                x_NHWC = unit(features, f"stage{stage}_transition", stage / 5, x_NHWC)
                x_NHWC = nn.avg_pool(x_NHWC, (2, 2), (2, 2))
        x_NHWC = unit(features, "head", 1.0, x_NHWC)
        feature_ND = nn.Dense(FEATURE, dtype=self.dtype, name="fc")(x_NHWC.mean((1, 2)))
        fc_norm = norms.BatchNorm(dtype=self.dtype, name="fc_norm")
        return nn.relu(fc_norm(feature_ND[:, None, None, :], train))


# The published ones.
WIDTHS = {"x1_0": 1.0, "x0_75": 0.75, "x0_5": 0.5, "x0_25": 0.25}
OSNETS = {
    **{f"osnet_{text}": partial(OSNet, width=width) for text, width in WIDTHS.items()},
    **{f"osnet_ain_{text}": partial(OSNet, width=width, ain=True) for text, width in WIDTHS.items()},
    "osnet_ibn_x1_0": partial(OSNet, ibn=True),
}
