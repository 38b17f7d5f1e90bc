import itertools

import jax
import numpy as np

from metabin_jax.data.pipeline import Buffers, RawBatch, batches
from metabin_jax.data.sampler import DomainSampler, EpochSampler, MetaSampler

RNG = np.random.default_rng(0)
PID = np.repeat(np.arange(18), 5)
DOMAIN = np.repeat(np.arange(3), 30)
IMAGES = RNG.integers(0, 256, (90, 6, 4, 3), np.uint8)
DRAWS = DomainSampler(PID, DOMAIN, 2, 2, seed=0)
META = MetaSampler(DRAWS, 2).meta
EPOCHS = EpochSampler(PID, 5, 4, seed=0)


def run(start, stop, base=EPOCHS.base, images=IMAGES):
    return list(batches(images, PID, DOMAIN, lambda step: (base(step), *META(step)), start, stop))


def same(a: RawBatch, b: RawBatch) -> bool:
    return all((x == y).all() for x, y in zip(a, b, strict=True))


def test_batches_hold_what_the_indices_say():
    for step, got in enumerate(run(0, 6, DRAWS.base)):
        expected = [DRAWS.base(step), *META(step)]
        assert len(got.base.image) == 12
        for batch, index in zip(got, expected, strict=True):
            assert (batch.image.dtype, batch.pid.dtype, batch.domain.dtype) == (np.uint8, np.int32, np.int32)
            for n, i in enumerate(index):
                assert (batch.image[n] == IMAGES[i]).all()
                assert (batch.pid[n], batch.domain[n]) == (PID[i], DOMAIN[i])


def test_starting_anywhere_gives_the_same_batches():
    """Across the end of an epoch: 7 steps."""
    assert EPOCHS.steps_per_epoch == 7
    whole = run(0, 20)
    for start in (1, 6, 7, 13):
        resumed = run(start, 20)
        assert len(resumed) == 20 - start
        for got, expected in zip(resumed, whole[start:], strict=True):
            assert all(map(same, got, expected))
        assert not same(resumed[0].base, whole[start - 1].base)


def test_reads_from_a_memory_map(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for got, expected in zip(run(0, 3, images=mapped), run(0, 3), strict=True):
        assert all(map(same, got, expected))
        assert type(got.base.image) is np.ndarray


def test_reads_only_a_few_steps_ahead():
    asked = []

    def rows(step):
        asked.append(step)
        return DRAWS.base(step), *META(step)

    first = list(itertools.islice(batches(IMAGES, PID, DOMAIN, rows, 0, 1000), 3))
    assert len(first) == 3
    assert max(asked) < 20


def test_memory_is_used_again_and_never_while_it_is_held():
    """Held are a batch, a slice of one, and what JAX made of one, which on a CPU it may only point to."""
    buffers = Buffers()
    first, second, third = (buffers.empty((64, 64)) for _ in range(3))
    first[:], second[:], third[:] = 1, 2, 3
    part, array = second[1:], jax.device_put(third)
    del second, third
    for value in range(5):
        buffers.empty((64, 64))[:] = value  # held by nobody
    last = buffers.empty((64, 64))
    assert (last == 4).all()  # the negative control: what nobody holds is written over
    assert (first == 1).all() and (part == 2).all() and (np.asarray(array) == 3).all()
