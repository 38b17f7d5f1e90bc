"""What every batch of every sampler must be, whatever the data."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from metabin_jax.data.sampler import DomainSampler, EpochSampler, MetaSampler, held_out_split
from metabin_jax.runtime.errors import UserError

SEEDS = st.integers(0, 2**32 - 1)
STEPS = st.integers(0, 2**31 - 2)
# Images per identity, identity after identity, domain after domain.
SETS = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=6), min_size=1, max_size=4)


def labels(counts, held_out=()):
    """pid and domain of every image; -1 for those of held-out identities. Shuffled."""
    rows, identity = [], 0
    for domain, of_domain in enumerate(counts):
        for number in of_domain:
            rows += [(-1 if identity in held_out else identity, domain)] * number
            identity += 1
    return np.random.default_rng(0).permutation(np.array(rows)).T


@given(SETS, st.sets(st.integers(0, 5)), st.integers(1, 4), st.integers(1, 5), SEEDS, STEPS)
def test_a_batch_of_domains(counts, held_out, ids, images, seed, step):
    pid, domain = labels(counts, held_out)
    try:
        sampler = DomainSampler(pid, domain, ids, images, seed)
    except UserError:
        fewest = min(len({*pid[(domain == d) & (pid >= 0)]}) for d in range(len(counts)))
        assert fewest < ids
        return
    drawn = sampler.base(step)
    assert (drawn == DomainSampler(pid, domain, ids, images, seed).base(step)).all()
    for d, of_domain in enumerate(np.split(drawn, len(counts))):
        assert (domain[of_domain] == d).all()
        by_identity = of_domain.reshape(ids, images)
        people = pid[by_identity]
        assert (people == people[:, :1]).all() and len({*people[:, 0]}) == ids and (people >= 0).all()
        for row, person in zip(by_identity, people[:, 0], strict=True):
            assert len({*row}) == min(images, (pid == person).sum())


@given(SETS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), SEEDS, STEPS)
def test_a_meta_batch_splits_the_domains(counts, num_meta_train, ids, images, seed, step):
    pid, domain = labels(counts)
    assume(num_meta_train < len(counts) and min(map(len, counts)) >= ids)
    sampler = MetaSampler(DomainSampler(pid, domain, ids, images, seed), num_meta_train)
    train, test = (set(domain[rows].tolist()) for rows in sampler.meta(step))
    assert not train & test and train | test == {*range(len(counts))} and len(train) == num_meta_train


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 6), st.integers(1, 5), SEEDS, STEPS)
def test_a_batch_of_identities(counts, ids, images, seed, step):
    pid, _ = labels([counts])
    assume(len(counts) >= ids)
    sampler = EpochSampler(pid, ids, images, seed)
    drawn = sampler.base(step).reshape(ids, images)
    assert (pid[drawn] == pid[drawn][:, :1]).all() and len({*pid[drawn][:, 0].tolist()}) == ids
    assert (drawn == EpochSampler(pid, ids, images, seed).base(step).reshape(ids, images)).all()
    for row in drawn:
        assert len({*row}) == min(images, (pid == pid[row[0]]).sum())


@given(SETS, st.floats(0.01, 0.99), SEEDS, st.integers(1, 3))
def test_whole_identities_are_held_out_of_every_domain(counts, fraction, seed, cameras):
    pid, domain = labels(counts)
    camid = np.random.default_rng(seed).integers(cameras, size=len(pid))
    try:
        held_out = held_out_split(pid, camid, domain, fraction, seed)
    except UserError:
        assert min(sum(number > 1 for number in of_domain) for of_domain in counts) < 2
        return
    assert not {*pid[held_out]} & {*pid[~held_out]}
    for d, of_domain in enumerate(counts):
        number = len({*pid[held_out & (domain == d)]})
        able = sum(count > 1 for count in of_domain)
        assert number == min(able, max(2, round(fraction * len(of_domain))))
