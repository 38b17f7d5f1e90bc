"""Augmentation and normalisation on the device, from uint8."""

import jax
import jax.numpy as jnp

# Of ImageNet, per RGB channel, for pixels in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(image_NHWC: jax.Array) -> jax.Array:
    """Maps uint8 [N, H, W, 3] to float32: (x / 255 - mean) / std with ImageNet's moments."""
    mean, std = (jnp.array(moment, jnp.float32).reshape(1, 1, 1, 3) for moment in (MEAN, STD))
    return (image_NHWC.astype(jnp.float32) / 255 - mean) / std


def augment(key: jax.Array, image_NHWC: jax.Array, pad: int) -> jax.Array:
    """Flips, shifts and normalises each image on its own (Sec. 4.1; the released configs do nothing else).

    With probability 0.5 an image is mirrored left to right; then it is padded by `pad` black pixels on every
    side and cropped to its size at a uniformly random place.

    Args:
      key: a JAX random key.
      image_NHWC: uint8 [N, H, W, 3].
      pad: in pixels; static under jit.

    Returns:
      float32 [N, H, W, 3], normalised.
    """
    n, height, width, _ = image_NHWC.shape
    flip_key, crop_key = jax.random.split(key)
    flip_N111 = jax.random.bernoulli(flip_key, shape=(n, 1, 1, 1))
    corner_N2 = jax.random.randint(crop_key, (n, 2), 0, 2 * pad + 1)
    flipped_NHWC = jnp.where(flip_N111, image_NHWC[:, :, ::-1], image_NHWC)
    padded_NHWC = jnp.pad(flipped_NHWC, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image_HWC: jax.Array, corner_2: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image_HWC, (corner_2[0], corner_2[1], 0), (height, width, 3))

    return normalise(jax.vmap(crop)(padded_NHWC, corner_N2))
