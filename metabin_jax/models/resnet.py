"""ResNet-50 (He et al. 2016) in torchvision's layout: the 3 x 3 convolution has the stride. The last stride is 1."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from metabin_jax.models import mixstyle
from metabin_jax.models.convolution import Before, Conv
from metabin_jax.norm import NormFactory


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 to 4 * features, plus the input (projected if the shape changes)."""

    features: int
    stride: int
    norm: NormFactory
    depth: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x_NHWC: jax.Array, train: bool) -> jax.Array:
        def normalised(name: str, y_NHWC: jax.Array, opens: bool = False) -> Before:
            return Before(*self.norm(self.depth, name, opens).coefficients(y_NHWC, train), nn.relu)

        y_NHWC = Conv(self.features, 1, dtype=self.dtype, name="conv1")(x_NHWC)
        before = normalised("norm1", y_NHWC, opens=self.depth < 1)
        y_NHWC = Conv(self.features, 3, self.stride, dtype=self.dtype, name="conv2")(y_NHWC, before)
        before = normalised("norm2", y_NHWC)
        y_NHWC = Conv(4 * self.features, 1, dtype=self.dtype, name="conv3")(y_NHWC, before)
        y_NHWC = self.norm(self.depth, name="norm3")(y_NHWC, train)
        if y_NHWC.shape != x_NHWC.shape:
            x_NHWC = Conv(4 * self.features, 1, self.stride, dtype=self.dtype, name="shortcut")(x_NHWC)
            x_NHWC = self.norm(self.depth, name="shortcut_norm")(x_NHWC, train)
        return nn.relu(x_NHWC + y_NHWC)


class ResNet50(nn.Module):
    """image [N, H, W, 3] -> map [N, H / 16, W / 16, 2048]; 53 norm layers, 26,560 channels.

    last_stride: of the last stage; torchreid's is 2, with a map [N, H / 32, W / 32, 2048]. mixes_styles: apply MixStyle
    after the first stages.
    """

    norm: NormFactory
    last_stride: int = 1
    mixes_styles: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, image_NHWC: jax.Array, train: bool) -> jax.Array:
        x_NHWC = Conv(64, 7, 2, dtype=self.dtype, name="stem")(image_NHWC)
        x_NHWC = nn.relu(self.norm(1 / 5, name="stem_norm")(x_NHWC, train))
        x_NHWC = nn.max_pool(x_NHWC, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, (blocks, stride) in enumerate([(3, 1), (4, 2), (6, 2), (3, self.last_stride)], start=2):
            for block in range(blocks):
                x_NHWC = Bottleneck(
                    features=64 * 2 ** (stage - 2),
                    stride=stride if block == 0 else 1,
                    norm=self.norm,
                    depth=stage / 5,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x_NHWC, train)
            if self.mixes_styles and stage in mixstyle.STAGES:
                x_NHWC = mixstyle.MixStyle(name=f"stage{stage}_mixstyle")(x_NHWC, train)
        return x_NHWC
