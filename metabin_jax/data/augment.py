"""Augmentation and normalisation of uint8 images, on the device."""

import jax
import jax.numpy as jnp

# ImageNet's moments per RGB channel, for pixels in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(image_NHWC: jax.Array) -> jax.Array:
    """Maps uint8 [N, H, W, 3] to float32: (x / 255 - mean) / std with ImageNet's moments."""
    mean, std = (jnp.array(moment, jnp.float32).reshape(1, 1, 1, 3) for moment in (MEAN, STD))
    return (image_NHWC.astype(jnp.float32) / 255 - mean) / std


def disturb(key: jax.Array, image_NHWC: jax.Array) -> jax.Array:
    """Strong augmentation as in BAU (Cho et al., NeurIPS 2024): colour jitter and random erasing.

    Each is applied with probability 0.5. Jitter multiplies brightness, contrast and saturation, in this order, by
    factors of 0.5 to 2. Erasing fills a rectangle with the mean colour; it has 2 to 40 % of the area, is 0.3 to 3.3
    times as high as wide, and is cut off at the border of the image.
    Takes and returns float32 [N, H, W, 3] as `normalise` returns it.
    """
    n, height, width, _ = image_NHWC.shape
    chance_key, factor_key, hole_key = jax.random.split(key, 3)
    jitters_N111, erases_N111 = jax.random.bernoulli(chance_key, shape=(2, n, 1, 1, 1))
    factors_3N111 = jax.random.uniform(factor_key, (3, n, 1, 1, 1), minval=0.5, maxval=2)
    mean, std = (jnp.array(moment, jnp.float32).reshape(1, 1, 1, 3) for moment in (MEAN, STD))
    jittered_NHWC = (jitter(image_NHWC * std + mean, *factors_3N111) - mean) / std
    area_N111, ratio_N111, *place = jax.random.uniform(hole_key, (4, n, 1, 1, 1))
    area_N111 = (0.02 + 0.38 * area_N111) * height * width
    ratio_N111 = 0.3 * 11**ratio_N111
    sides = jnp.sqrt(area_N111 * ratio_N111), jnp.sqrt(area_N111 / ratio_N111)
    inside_NHW1 = erases_N111
    for axis, (side_N111, place_N111) in enumerate(zip(sides, place, strict=True), start=1):
        length = image_NHWC.shape[axis]
        at = jax.lax.broadcasted_iota(jnp.float32, (1, height, width, 1), axis)
        start_N111 = jnp.floor(place_N111 * jnp.maximum(length - side_N111 + 1, 1))
        inside_NHW1 &= (at >= start_N111) & (at < start_N111 + side_N111)
    return jnp.where(inside_NHW1, 0, jnp.where(jitters_N111, jittered_NHWC, image_NHWC))


def jitter(image_NHWC: jax.Array, brightness: jax.Array, contrast: jax.Array, saturation: jax.Array) -> jax.Array:
    """Applies each factor [N, 1, 1, 1] in turn to images in [0, 1], as torchvision's ColorJitter does."""

    def grey(image_NHWC):  # ITU-R 601
        return (image_NHWC * jnp.array([0.299, 0.587, 0.114]).reshape(1, 1, 1, 3)).sum(3, keepdims=True)

    image_NHWC = jnp.clip(image_NHWC * brightness, 0, 1)
    middle_N111 = grey(image_NHWC).mean((1, 2), keepdims=True)
    image_NHWC = jnp.clip(middle_N111 + contrast * (image_NHWC - middle_N111), 0, 1)
    grey_NHW1 = grey(image_NHWC)
    return jnp.clip(grey_NHW1 + saturation * (image_NHWC - grey_NHW1), 0, 1)


def augment(key: jax.Array, image_NHWC: jax.Array, pad: int) -> jax.Array:
    """Flips, shifts and normalises each image independently (Sec. 4.1, and all that the released configs do).

    With probability 0.5 an image is mirrored left to right. Then it is padded by `pad` (static under jit) black pixels
    on every side and cropped to its size at a uniformly random place.
    Takes uint8 [N, H, W, 3] and returns float32 [N, H, W, 3].
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
