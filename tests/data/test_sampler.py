import hashlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from metabin_jax.data.sampler import DomainSampler, EpochSampler, MetaSampler, held_out_split


def sources(num_domains=3, ids=(5, 30), images=(1, 14), seed=0):
    """Labels of made-up sources: domains of different sizes, ids of 1 to 13 images, in shuffled order."""
    rng = np.random.default_rng(seed)
    pid, domain = [], []
    for d in range(num_domains):
        for _ in range(rng.integers(*ids)):
            new = max(pid, default=-1) + 1
            count = rng.integers(*images)
            pid += [new] * count
            domain += [d] * count
    order = rng.permutation(len(pid))
    return np.array(pid)[order], np.array(domain)[order]


PID, DOMAIN = sources(ids=(8, 30))


def counts_as_expected(index, pid, images_per_id) -> bool:
    """Every run of images_per_id holds one identity, each image at most once more often than any other."""
    for group in index.reshape(-1, images_per_id):
        ids = set(pid[group].tolist())
        if len(ids) != 1:
            return False
        all_images = np.flatnonzero(pid == ids.pop())
        uses = [int((group == i).sum()) for i in all_images]
        if max(uses) - min(uses) > 1:
            return False
    return True


def padded_groups(pid, images_per_id) -> int:
    return sum(-(-n // images_per_id) for n in Counter(pid[pid >= 0].tolist()).values())


def test_domain_batches_have_p_ids_of_k_images_per_domain():
    sampler = DomainSampler(PID, DOMAIN, 4, 3, seed=0)
    for step in range(50):
        index = sampler.base(step)
        assert index.shape == (36,)
        assert index.dtype == np.int64
        assert counts_as_expected(index, PID, 3)
        assert DOMAIN[index].tolist() == [0] * 12 + [1] * 12 + [2] * 12
        assert len(set(PID[index].tolist())) == 12


def test_the_structure_check_can_fail():
    index = DomainSampler(PID, DOMAIN, 4, 3, seed=0).base(0)
    assert not counts_as_expected(np.roll(index, 1), PID, 3)
    many = next(i for i in index if (PID[i] == PID).sum() > 3)
    assert not counts_as_expected(np.repeat(many, 3), PID, 3)


def test_domain_draws_are_uniform_over_identities_and_images():
    pid = np.repeat(np.arange(6), [2, 4, 8, 8, 8, 8])
    sampler = DomainSampler(pid, np.zeros(38, int), 3, 4, seed=0)
    steps = 2000
    uses = np.bincount(np.concatenate([sampler.base(s) for s in range(steps)]), minlength=38)
    # Every identity is drawn in half of the steps, and its 4 places are shared evenly by its images.
    expected = steps / 2 * 4 / np.repeat([2, 4, 8, 8, 8, 8], [2, 4, 8, 8, 8, 8])
    assert np.abs(uses - expected).max() < 6 * np.sqrt(steps)
    assert np.abs(uses - uses.mean()).max() > 6 * np.sqrt(steps)  # uniform over images would be wrong


def check_epoch(sampler, epoch, pid, ids_per_batch, images_per_id) -> int:
    """Follows the pool through an epoch; returns how often it was filled."""
    groups_of = {p: -(-n // images_per_id) for p, n in Counter(pid.tolist()).items()}
    left, shown, pools = dict(groups_of), Counter(), 1
    for step in range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch):
        index = sampler.base(step)
        assert index.shape == (ids_per_batch * images_per_id,)
        assert index.dtype == np.int64
        assert counts_as_expected(index, pid, images_per_id)
        batch_ids = pid[index[::images_per_id]].tolist()
        assert len(set(batch_ids)) == ids_per_batch
        if sum(n > 0 for n in left.values()) < ids_per_batch:
            left, shown, pools = dict(groups_of), Counter(), pools + 1
        shown.update(index.tolist())
        for p in batch_ids:
            left[p] -= 1
            assert left[p] >= 0, "a group too many"
            if left[p] == 0:  # every image shown, and as few as possible of them twice
                uses = [shown[i] for i in np.flatnonzero(pid == p).tolist()]
                assert sum(uses) == images_per_id * groups_of[p]
                assert max(uses) - min(uses) <= 1
    return pools


def test_official_epoch_uses_every_group_once_until_the_pool_runs_out():
    pid, domain = sources(ids=(20, 40))
    sampler = EpochSampler(pid, 5, 4, seed=0)
    for epoch in range(3):
        assert check_epoch(sampler, epoch, pid, 5, 4) <= 2
    redrawn = DomainSampler(pid, domain, 4, 4, seed=0)  # draws afresh at every step: must be told apart
    with pytest.raises(AssertionError, match="a group too many"):
        check_epoch(redrawn, 0, pid, 12, 4)


def test_official_pool_is_refilled_within_the_epoch():
    """One identity has most of the images: the others run out long before the epoch ends."""
    pid = np.array([0] * 400 + list(range(1, 21)) * 4)
    sampler = EpochSampler(pid, 10, 4, seed=0)
    assert sampler.steps_per_epoch == 12
    assert check_epoch(sampler, 0, pid, 10, 4) >= 6


def test_official_batches_mix_domains():
    sampler = EpochSampler(PID, 5, 4, seed=0)
    patterns = {tuple(sorted(DOMAIN[sampler.base(s)[::4]])) for s in range(sampler.steps_per_epoch)}
    assert len(patterns) > 3


def test_steps_per_epoch():
    assert EpochSampler(PID, 5, 4, seed=0).steps_per_epoch == padded_groups(PID, 4) * 4 // 20
    assert DomainSampler(PID, DOMAIN, 4, 2, seed=0).steps_per_epoch == padded_groups(PID, 2) * 2 // 24


def index_functions(seed, pid=PID):
    draws = DomainSampler(pid, DOMAIN, 4, 4, seed)
    meta = MetaSampler(draws, 2).meta
    return {
        "domain": draws.base,
        "epoch": EpochSampler(pid, 5, 4, seed).base,
        "meta": lambda step: np.concatenate(meta(step)),
    }


@pytest.mark.parametrize("name", ["domain", "epoch", "meta"])
def test_indices_depend_on_seed_and_step_alone(name):
    steps = (0, 1, 7, 100, 31)
    forward = index_functions(3)[name]
    in_order = {s: forward(s) for s in steps}
    backward = index_functions(3)[name]
    for s in reversed(steps):
        assert (backward(s) == in_order[s]).all()
    other = index_functions(4)[name]
    assert any((other(s) != in_order[s]).any() for s in steps)
    assert (in_order[0] != in_order[1]).any()
    assert (in_order[0] != in_order[31]).any()


def test_draws_are_the_same_on_every_machine():
    """Written down once: if these numbers change, old runs cannot be repeated."""
    pid, domain = np.repeat(np.arange(12), 3), np.repeat(np.arange(3), 12)
    draws = DomainSampler(pid, domain, 2, 2, seed=5)
    assert draws.base(7).tolist() == [1, 2, 5, 3, 17, 15, 12, 14, 25, 24, 30, 32]
    meta_train, meta_test = MetaSampler(draws, 2).meta(7)
    assert meta_train.tolist() == [10, 9, 8, 6, 24, 26, 31, 30]
    assert meta_test.tolist() == [22, 21, 15, 16]
    assert EpochSampler(pid, 4, 2, seed=5).base(7).tolist() == [3, 4, 9, 11, 14, 13, 8, 6]


@pytest.mark.parametrize("name", ["domain", "epoch", "meta"])
def test_images_of_no_identity_are_never_drawn(name):
    pid = np.where(PID % 3 == 0, -1, PID)
    for step in range(100):
        assert (pid[index_functions(0, pid)[name](step)] >= 0).all()
    assert any((pid[index_functions(0)[name](step)] < 0).any() for step in range(100))


def test_meta_batches_split_the_domains():
    pid, domain = sources(num_domains=5)
    sampler = MetaSampler(DomainSampler(pid, domain, 4, 4, seed=0), 3)
    splits = Counter()
    for step in range(1000):
        train, test = sampler.meta(step)
        assert (train.shape, test.shape) == ((48,), (32,))
        assert counts_as_expected(np.concatenate([train, test]), pid, 4)
        train_domains, test_domains = Counter(domain[train].tolist()), Counter(domain[test].tolist())
        assert set(train_domains.values()) | set(test_domains.values()) == {16}
        assert sorted(train_domains + test_domains) == [0, 1, 2, 3, 4]
        splits[tuple(sorted(test_domains))] += 1
    # Ten ways to choose two of five domains, each with probability 1/10; five standard deviations are 47.
    assert sorted(splits) == list(combinations(range(5), 2))
    assert max(abs(n - 100) for n in splits.values()) < 47


def test_meta_batch_is_not_the_base_batch():
    draws = DomainSampler(PID, DOMAIN, 4, 4, seed=0)
    base, meta = draws.base(0), np.concatenate(MetaSampler(draws, 2).meta(0))
    assert set(base.tolist()) != set(meta.tolist())


def test_errors():
    two = np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match="Domain shop has 2 identities to train on, but a batch takes 4"):
        DomainSampler(two, np.zeros(4, int), 4, 2, 0, ["shop"])
    with pytest.raises(ValueError, match="Domain 1 has 0 identities"):
        DomainSampler(np.array([0, 0, -1]), np.array([0, 0, 1]), 1, 2, 0)
    with pytest.raises(ValueError, match="There are 2 identities to train on, but a batch takes 3"):
        EpochSampler(two, 3, 2, 0)
    draws = DomainSampler(PID, DOMAIN, 4, 4, 0)
    for wrong in (0, 3, 4, -1):
        with pytest.raises(ValueError, match=rf"num_meta_train is {wrong}, .* choose from 1 to 2\."):
            MetaSampler(draws, wrong)
    with pytest.raises(ValueError, match="num_meta_train is 1, out of 1 domains"):
        MetaSampler(DomainSampler(two, np.zeros(4, int), 2, 2, 0), 1)


def labels_for_validation():
    """Domain 0: 20 ids seen by two cameras. Domain 1: 4 such, 10 seen by one camera, 10 with one image."""
    rows = [(p, c, 0) for p in range(20) for c in (0, 1)]
    rows += [(p, c, 1) for p in range(4) for c in (0, 1)]
    rows += [(p, 0, 1) for p in range(4, 14) for _ in range(2)]
    rows += [(p, 0, 1) for p in range(14, 24)]
    return np.random.default_rng(0).permutation(np.array(rows)).T


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.1, ((2, 0), (2, 0))), (0.01, ((2, 0), (2, 0))), (0.3, ((6, 0), (4, 3))), (0.9, ((18, 0), (4, 10)))],
)
def test_held_out_identities(fraction, expected):
    """Counts per domain: identities seen by two cameras, by one."""
    pid, camid, domain = labels_for_validation()
    mask = held_out_split(pid, camid, domain, fraction, seed=0)
    assert mask.dtype == bool
    for d in range(2):
        held = {p for p, e, m in zip(pid, domain, mask, strict=True) if e == d and m}
        kept = {p for p, e, m in zip(pid, domain, mask, strict=True) if e == d and not m}
        assert not held & kept
        assert all(((pid == p) & (domain == d)).sum() >= 2 for p in held)
        two = sum(len(set(camid[(pid == p) & (domain == d)].tolist())) == 2 for p in held)
        assert (two, len(held) - two) == expected[d]


def test_held_out_depends_on_the_seed_alone():
    labels = labels_for_validation()
    first = held_out_split(*labels, 0.2, seed=0)
    assert (first == held_out_split(*labels, 0.2, seed=0)).all()
    assert (first != held_out_split(*labels, 0.2, seed=1)).any()


def test_held_out_errors():
    pid, camid, domain = np.array([0, 0, 1]), np.zeros(3, int), np.zeros(3, int)
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            held_out_split(pid, camid, domain, wrong, 0)
    with pytest.raises(ValueError, match="Domain shop has 1 identities with two or more images"):
        held_out_split(pid, camid, domain, 0.5, 0, ["shop"])


def test_an_identity_of_two_cameras_is_one_in_each():
    """As where the cameras of one source are the domains: no draw for a domain holds another domain's image."""
    pid = np.repeat(np.arange(6), 8)
    camera = np.tile(np.repeat([0, 1], 4), 6)
    sampler = DomainSampler(pid, camera, 3, 4, seed=0)
    for step in range(20):
        index = sampler.base(step)
        assert camera[index].tolist() == [0] * 12 + [1] * 12
        groups = index.reshape(6, 4)
        assert all(len(set(pid[group])) == 1 and len(set(group.tolist())) == 4 for group in groups)
    assert sampler.steps_per_epoch == 2  # 12 groups of 4 images, 6 of them in a batch


def test_the_batches_of_a_seed_are_those_of_every_machine():
    """numpy may change what a Generator draws. The digest is that of numpy 1.26 to 2.4 and Python 3.11 to 3.13."""

    def digest(seed):
        pid = np.arange(3000) * 7919 % 300
        domains, identities = DomainSampler(pid, pid % 5, 4, 4, seed), EpochSampler(pid, 20, 4, seed)
        meta = MetaSampler(domains, 3)
        rows = [held_out_split(pid, pid % 5, pid % 5, 0.1, seed)]
        for step in range(50):
            rows += [domains.base(step), *meta.meta(step), identities.base(step)]
        return hashlib.sha256(b"".join(row.astype("<i8").tobytes() for row in rows)).hexdigest()[:16]

    assert digest(3) == "6bca29293260fd6f"
    assert digest(4) != "6bca29293260fd6f"
