"""MixStyle: Zhou et al., "Domain Generalization with MixStyle", ICLR 2021."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from metabin_jax.norm import instance_moments

# The paper's for re-identification: how often a batch is mixed, and Beta(ALPHA, ALPHA) of the share kept.
PROBABILITY = 0.5
ALPHA = 0.1
EPSILON = 1e-6
STAGES = (2, 3)  # the first two behind the stem: ResNet's layer1 and layer2, as in the paper; of MobileNetV2 our choice


def mix_styles(x_NHWC: jax.Array, keep_N: jax.Array, other_N: jax.Array) -> jax.Array:
    """Gives each image keep_N of its own style and the rest of another's, whose number in the batch is other_N.

    An image's style is its mean and deviation per channel [N, C]; no gradient passes through them.
    """
    mean_NC, var_NC = jax.lax.stop_gradient(instance_moments(x_NHWC))
    std_NC = jnp.sqrt(var_NC + EPSILON)
    take_N1 = (1 - keep_N)[:, None].astype(std_NC.dtype)
    # By differences from the image's own style, so that one that keeps all of it is returned bit for bit.
    scale_NC = 1 + take_N1 * (std_NC[other_N] - std_NC) / std_NC
    shift_NC = take_N1 * (mean_NC[other_N] - mean_NC) + mean_NC * (1 - scale_NC)
    return (x_NHWC * scale_NC[:, None, None, :] + shift_NC[:, None, None, :]).astype(x_NHWC.dtype)


class MixStyle(nn.Module):
    """x_NHWC [N, H, W, C] -> the same shape: in training, by chance, `mix_styles` with the batch in random order.

    The chance is the whole batch's; the share kept is drawn for each image. Others may be of the same domain (the
    paper's "random" mixing; "crossdomain" would need the domains). Draws from the rng collection `noise`.
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
