"""Which images a step sees: pure functions from (seed, step) to indices.

Every draw depends on the seed and the step (or the epoch) only, so a run resumes from one integer.

All take pid, int [n], numbered over all sources, and domain, int [n], 0..K-1. A pid of -1 marks an image that no batch
may hold, such as one held out. All return int64 indices into these arrays, identity after identity.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from metabin_jax.runtime.errors import UserError

# One random stream per purpose, so that no draw depends on how much another one consumed.
BASE, META, META_SPLIT, HELD_OUT = range(4)


class Identities:
    """The images of identity m of M are image[first[m] : first[m] + count[m]].

    label: int [n], one value per identity; negative for an image that no batch may hold.
    """

    def __init__(self, label: np.ndarray):
        used = np.flatnonzero(label >= 0)
        self.image = used[np.argsort(label[used], kind="stable")]
        _, self.first, self.count = np.unique(label[self.image], return_index=True, return_counts=True)

    def num_groups(self, images_per_id: int) -> np.ndarray:
        """How many groups of images_per_id each identity fills, the last one padded: int64 [M]."""
        return -(-self.count // images_per_id)


class DomainSampler:
    """Batches of ids_per_domain x images_per_id from every domain: the base batch of the `paper` preset.

    The paper (Sec. 4.1) takes 16 images of each of 5 domains. Every step draws afresh. An identity with fewer than
    images_per_id images repeats them in turn. A person in two domains (two cameras of a source) is an identity in each.

    steps_per_epoch: the number of images, padded per identity to a multiple of images_per_id, over the batch size.
    Raises UserError, with the domain's name, if a domain has fewer than ids_per_domain identities.
    """

    def __init__(
        self,
        pid: np.ndarray,
        domain: np.ndarray,
        ids_per_domain: int,
        images_per_id: int,
        seed: int,
        names: Sequence = (),
    ):
        self.seed = seed
        self.num_domains = int(domain.max()) + 1
        self._identities = Identities(np.where(pid < 0, -1, pid * self.num_domains + domain))
        self._shape = (ids_per_domain, images_per_id)
        domain_of_id = domain[self._identities.image[self._identities.first]]
        self._ids_of_domain = [np.flatnonzero(domain_of_id == d) for d in range(self.num_domains)]
        for d, ids in enumerate(self._ids_of_domain):
            if len(ids) < ids_per_domain:
                raise UserError(
                    f"Domain {names[d] if names else d} has {len(ids)} identities to train on, but a batch"
                    f" takes {ids_per_domain} of each domain: leave it out or lower ids_per_domain."
                )
        num_groups = int(self._identities.num_groups(images_per_id).sum())
        self.steps_per_epoch = max(1, num_groups // (self.num_domains * ids_per_domain))

    def base(self, step: int) -> np.ndarray:
        """Returns int64 [K * ids_per_domain * images_per_id], domain after domain."""
        return self.draw(BASE, step).ravel()

    def draw(self, stream: int, step: int) -> np.ndarray:
        """Returns int64 [K, ids_per_domain * images_per_id]; streams are independent of each other."""
        ids_per_domain, images_per_id = self._shape
        rng = np.random.default_rng([self.seed, stream, step])
        drawn = [ids[rng.choice(len(ids), ids_per_domain, replace=False)] for ids in self._ids_of_domain]
        identity = np.concatenate(drawn)
        within = [
            np.resize(rng.choice(count, min(count, images_per_id), replace=False), images_per_id)
            for count in self._identities.count[identity]
        ]
        first = self._identities.first[identity, None]
        return self._identities.image[first + np.stack(within)].reshape(self.num_domains, -1)


class MetaSampler:
    """Meta batches of both presets (Algorithm 1): a draw from every domain, and a random split of the domains."""

    def __init__(self, sampler: DomainSampler, num_meta_train: int):
        most = sampler.num_domains - 1
        if not 1 <= num_meta_train <= most:
            raise ValueError(f"num_meta_train is {num_meta_train}, out of {most + 1} domains: choose from 1 to {most}.")
        self._sampler, self.num_meta_train = sampler, num_meta_train

    def meta(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns meta-train int64 [num_meta_train * B] and meta-test int64 [(K - num_meta_train) * B].

        B = ids_per_domain * images_per_id.
        """
        index_KB = self._sampler.draw(META, step)
        split = np.random.default_rng([self._sampler.seed, META_SPLIT, step]).permutation(len(index_KB))
        train, test = split[: self.num_meta_train], split[self.num_meta_train :]
        return index_KB[train].ravel(), index_KB[test].ravel()


class EpochSampler:
    """Base batches of the `official` preset: ids_per_batch x images_per_id from any domain, without replacement.

    An epoch starts with a pool: the images of every identity are shuffled, padded to a multiple of images_per_id
    (each image once before any repeats) and cut into groups. A step takes one group of each of ids_per_batch
    distinct identities, drawn uniformly from those that have groups left. When fewer than ids_per_batch identities
    have groups left, these are dropped and the pool is refilled, also within an epoch.

    steps_per_epoch: the number of padded images over the batch size.
    Raises UserError if there are fewer than ids_per_batch identities.
    """

    def __init__(self, pid: np.ndarray, ids_per_batch: int, images_per_id: int, seed: int):
        self._identities, self._shape, self._seed = Identities(pid), (ids_per_batch, images_per_id), seed
        if (num_ids := len(self._identities.count)) < ids_per_batch:
            raise UserError(
                f"There are {num_ids} identities to train on, but a batch takes {ids_per_batch}:"
                " lower ids_per_batch or add data."
            )
        self.steps_per_epoch = int(self._identities.num_groups(images_per_id).sum()) // ids_per_batch
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)  # two, as prefetching reaches into the next epoch

    def base(self, step: int) -> np.ndarray:
        """Returns int64 [ids_per_batch * images_per_id]."""
        epoch, row = divmod(step, self.steps_per_epoch)
        return self._plan(epoch)[row]

    def _plan_epoch(self, epoch: int) -> np.ndarray:
        """Returns int64 [steps_per_epoch, ids_per_batch * images_per_id]."""
        rng = np.random.default_rng([self._seed, BASE, epoch])
        plan = self._use_pool(rng)
        while len(plan) < self.steps_per_epoch:
            plan = np.concatenate([plan, self._use_pool(rng)])
        return plan[: self.steps_per_epoch]

    def _use_pool(self, rng: np.random.Generator) -> np.ndarray:
        """Fills the pool and returns its batches, int64 [any number, ids_per_batch * images_per_id]."""
        ids_per_batch, images_per_id = self._shape
        first, count = self._identities.first, self._identities.count
        shuffled = rng.permutation(len(self._identities.image))
        owner = np.repeat(np.arange(len(count)), count)[shuffled]
        image = self._identities.image[shuffled[np.argsort(owner, kind="stable")]]  # shuffled within identities

        groups_left = self._identities.num_groups(images_per_id)
        waiting = np.arange(len(count))  # the identities that still have groups
        batches = []
        while len(waiting) >= ids_per_batch:
            place = rng.choice(len(waiting), ids_per_batch, replace=False)
            identity = waiting[place]
            groups_left[identity] -= 1
            batches.append((identity, groups_left[identity]))
            for p in sorted(place[groups_left[identity] == 0], reverse=True):
                waiting[p] = waiting[-1]
                waiting = waiting[:-1]
        identity, group = np.moveaxis(np.array(batches), 1, 0)[..., None]  # each [batches, ids_per_batch, 1]
        within = (group * images_per_id + np.arange(images_per_id)) % count[identity]
        return image[first[identity] + within].reshape(len(batches), -1)


def held_out_split(
    pid: np.ndarray, camid: np.ndarray, domain: np.ndarray, fraction: float, seed: int, names: Sequence[str] = ()
) -> np.ndarray:
    """Holds out whole identities of every domain, to validate on the sources: bool [n], True for their images.

    In each domain, a `fraction` of the identities (rounded, at least two) is drawn from those with two or more images.
    Identities with two or more cameras come first, as the others have no match across cameras. pid, camid and domain
    are int [n]; here pid is unique within its domain only.

    Raises UserError if a domain has fewer than two identities with two images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"The held-out fraction is {fraction}; it must lie between 0 and 1.")
    rng = np.random.default_rng([seed, HELD_OUT])
    held_out = np.zeros(len(pid), bool)
    for d in range(int(domain.max()) + 1):
        ids, num_images = np.unique(pid[domain == d], return_counts=True)
        pid_and_camid = np.unique(np.stack([pid, camid], axis=1)[domain == d], axis=0)
        _, num_cameras = np.unique(pid_and_camid[:, 0], return_counts=True)
        eligible = rng.permutation(np.flatnonzero(num_images >= 2))
        if len(eligible) < 2:
            raise UserError(
                f"Domain {names[d] if names else d} has {len(eligible)} identities with two or more images, but"
                " two must be held out: hold nothing out or leave the domain out."
            )
        two_cameras_first = eligible[np.argsort(num_cameras[eligible] < 2, kind="stable")]
        chosen = ids[two_cameras_first[: max(2, round(fraction * len(ids)))]]
        held_out |= (domain == d) & np.isin(pid, chosen)
    return held_out
