"""MixStyle: Zhou et al., "Domain Generalization with MixStyle", ICLR 2021."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from metabin_jax.norm import instance_moments

# The paper's values for re-identification: how often a batch is mixed, and Beta(ALPHA, ALPHA) of the share kept.
PROBABILITY = 0.5
ALPHA = 0.1
EPSILON = 1e-6
STAGES = (2, 3)  # the first two after the stem: in ResNet layer1 and layer2, as in the paper; in MobileNetV2 our choice


def mix_styles(x_NHWC: jax.Array, keep_N: jax.Array, other_N: jax.Array) -> jax.Array:
    """Gives each image the share keep_N of its own style, and the rest from image other_N of the batch.

    x_NHWC: [N, H, W, C]; the result has the same shape and dtype. keep_N: float [N] in [0, 1]. other_N: integer [N].
    An image's style is its mean and standard deviation per channel [N, C]. No gradient passes through them.
    """
    mean_NC, var_NC = jax.lax.stop_gradient(instance_moments(x_NHWC))
    std_NC = jnp.sqrt(var_NC + EPSILON)
    take_N1 = (1 - keep_N)[:, None].astype(std_NC.dtype)
    # Written as differences from the image's own style, so that an image with keep 1 is returned bit for bit.
    scale_NC = 1 + take_N1 * (std_NC[other_N] - std_NC) / std_NC
    shift_NC = take_N1 * (mean_NC[other_N] - mean_NC) + mean_NC * (1 - scale_NC)
    return (x_NHWC * scale_NC[:, None, None, :] + shift_NC[:, None, None, :]).astype(x_NHWC.dtype)


class MixStyle(nn.Module):
    """x_NHWC [N, H, W, C] -> the same shape. In training, applies `mix_styles` to a batch with PROBABILITY.

    The other images are the batch in random order, and may come from the same domain: the paper's "random" mixing
    ("crossdomain" would need the domains). Each image draws its own share. Uses the rng collection `noise`.
    """

    @nn.compact
    def __call__(self, x_NHWC: jax.Array, train: bool) -> jax.Array:
        if not train:
            return x_NHWC
        images = len(x_NHWC)
        chance_key, keep_key, other_key = jax.random.split(self.make_rng("noise"), 3)
        mixes = jax.random.bernoulli(chance_key, PROBABILITY)
        keep_N = jnp.where(mixes, jax.random.beta(keep_key, ALPHA, ALPHA, (images,)), 1.0)
        return mix_styles(x_NHWC, keep_N, jax.random.permutation(other_key, images))
