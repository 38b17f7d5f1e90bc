"""From a source of images to what a run trains on."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from metabin_jax.data import cache, synthetic
from metabin_jax.data.records import Record, is_distractor, read_csv, read_folder
from metabin_jax.data.sampler import held_out_split
from metabin_jax.data.sets import prepared
from metabin_jax.runtime.errors import UserError


def read(source: str, path: str, domains: Sequence[str] = ()) -> list[Record]:
    """The records of `domains`, in this order, or of all domains; opens no image.

    source: synthetic, folder, csv or prepared; path: of the folder, the CSV manifest or the data_dir that
    `metabin prepare` wrote to. Raises ValueError for a domain that is not there, ValueError or FileNotFoundError as the
    readers do.
    """
    if source == "folder":
        return read_folder(path, domains)
    if source == "prepared":
        return prepared.read(path, domains)
    records = synthetic.list_records() if source == "synthetic" else read_csv(path)
    names = list(dict.fromkeys(record.domain for record in records))
    for domain in domains:
        if domain not in names:
            raise UserError(f"there is no domain {domain!r} in the data, which has {', '.join(names)}")
    return [record for domain in domains or names for record in records if record.domain == domain]


def load_images(source: str, records: Sequence[Record], size: tuple[int, int], cache_dir: str) -> np.ndarray:
    """The images of `records` as `read` returns them, uint8 [n, H, W, 3] at size (height, width).

    Raises ValueError or FileNotFoundError as the cache does.
    """
    if source == "synthetic":
        domains = list(dict.fromkeys(record.domain for record in records))
        return synthetic.generate(seed=0, domains=domains, size=size)[0]
    if source == "prepared":
        images = prepared.Images(records)
        return cache.load_images(records, size, cache_dir, images.stamp, images.open)
    return cache.load_images(records, size, cache_dir)


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What n records are to a run.

    domains: the K names of what Algorithm 1 calls domains: the sources, or their cameras. pid: int64 [n], 0..M-1 over
    all sources, -1 for an image that does not train. domain: int64 [n], index into `domains`. held_out: rows of the
    identities kept aside, per source (empty where none are).
    """

    records: list[Record]
    domains: tuple[str, ...]
    pid: np.ndarray
    domain: np.ndarray
    held_out: dict[str, np.ndarray]

    @property
    def num_ids(self) -> int:
        """M, the number of identities to train on."""
        return int(self.pid.max()) + 1


def training_set(
    records: Sequence[Record],
    sources: Sequence[str],
    val_fraction: float,
    seed: int,
    splits: Collection[str] = ("train", "all"),
    domain_by: Literal["source", "camera"] = "source",
) -> TrainingSet:
    """Numbers domains and identities; records of the `splits` train, but for val_fraction of the identities.

    Records of another split are dropped, and distractors (pid 0 in the gallery), who are no person. domain_by: whether
    a domain is one of the `sources` or one of their cameras.
    Raises ValueError for a source without anything to train on, or with too little to hold out.
    """
    records = [record for record in records if record.split in splits and not is_distractor(record)]
    present = {record.domain for record in records}
    for source in sources:
        if source not in present:
            raise UserError(
                f"domain {source!r} has no image of split {' or '.join(splits)}: leave it out of the training"
            )
    own_pid = np.array([record.pid for record in records])
    camid = np.array([record.camid for record in records])
    source_number = np.array([sources.index(record.domain) for record in records])

    held_out = np.zeros(len(records), bool)
    if val_fraction:
        held_out = held_out_split(own_pid, camid, source_number, val_fraction, seed, sources)
    pid = np.full(len(records), -1)
    _, pid[~held_out] = np.unique(np.stack([source_number, own_pid])[:, ~held_out], axis=1, return_inverse=True)
    rows_of = {source: np.flatnonzero(held_out & (source_number == k)) for k, source in enumerate(sources)}
    domains, domain = tuple(sources), source_number
    if domain_by == "camera":
        cameras, domain = np.unique(np.stack([source_number, camid]), axis=1, return_inverse=True)
        domains = tuple(f"{sources[k]}, camera {camera}" for k, camera in cameras.T.tolist())
    return TrainingSet(records, domains, pid, domain, rows_of if val_fraction else {})
