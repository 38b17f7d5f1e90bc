import jax
import numpy as np
import pytest
from moved_pictures import choices, pixels

from metabin_jax.data.augment import augment, normalise

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(1, 256, (32, 7, 5, 3), np.uint8)  # no black pixel: padding can be told apart


def normalised(pixel: int, channel: int) -> float:
    return (pixel / 255 - [0.485, 0.456, 0.406][channel]) / [0.229, 0.224, 0.225][channel]


def test_normalise():
    got = np.asarray(normalise(IMAGE))
    assert got.dtype == np.float32
    for n, h, w, c in RNG.integers(0, IMAGE.shape, (200, 4)):
        assert got[n, h, w, c] == pytest.approx(normalised(int(IMAGE[n, h, w, c]), c), abs=1e-6)
        assert got[n, h, w, c] != pytest.approx(normalised(int(IMAGE[n, h, w, c]), (c + 1) % 3), abs=1e-6)


@pytest.mark.parametrize("pad", [0, 2])
def test_each_image_is_a_flip_and_a_shift_of_itself(pad):
    got = pixels(jax.jit(augment, static_argnums=2)(jax.random.key(0), IMAGE, pad))
    found = [choices(g, i, pad) for g, i in zip(got, IMAGE, strict=True)]
    assert [len(f) for f in found] == [1] * 32
    assert len({f[0] for f in found}) > (1 if pad == 0 else 15)  # each image has its own draw
    other = [choices(g, i, pad) for g, i in zip(got, np.roll(IMAGE, 1, 0), strict=True)]
    assert not any(other)


def test_flips_and_shifts_are_uniform():
    image = np.broadcast_to(RNG.integers(1, 256, (1, 3, 3, 3), np.uint8), (4000, 3, 3, 3))
    got = pixels(augment(jax.random.key(1), image, 1))
    outcomes, counts = np.unique(got.reshape(4000, -1), axis=0, return_counts=True)
    assert len(outcomes) == 2 * 3 * 3
    # 4000 / 18 = 222 each; five standard deviations are 72.
    assert np.abs(counts - 4000 / 18).max() < 72


def test_key_decides():
    first, again, other = (pixels(augment(jax.random.key(k), IMAGE, 2)) for k in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
