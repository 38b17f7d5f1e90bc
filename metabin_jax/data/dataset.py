"""From a source of images to what a run trains on."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from metabin_jax.data import cache, synthetic
from metabin_jax.data.records import Record, read_csv, read_folder
from metabin_jax.data.sampler import held_out_split

TRAIN_SPLITS = ("train", "all")


def domain_names(source: str, path: str) -> tuple[str, ...]:
    """The domains of a source (synthetic, folder, csv; path: of the folder or CSV), sorted; drawn ones in order."""
    if source == "synthetic":
        return synthetic.DOMAIN_NAMES
    return tuple(sorted({record.domain for record in _read(source, path)}))


def load(
    source: str, path: str, domains: Sequence[str], size: tuple[int, int], cache_dir: str
) -> tuple[np.ndarray, list[Record]]:
    """The images of `domains`, uint8 [n, H, W, 3] at size (height, width), and their n records.

    Raises ValueError or FileNotFoundError as the readers and the cache do.
    """
    if source == "synthetic":
        return synthetic.generate(seed=0, domains=domains, size=size)
    records = [record for record in _read(source, path) if record.domain in domains]
    return cache.load_images(records, size, cache_dir), records


def _read(source: str, path: str) -> list[Record]:
    return read_csv(path) if source == "csv" else read_folder(path)


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """images: uint8 [n, H, W, 3], aligned with n records of the domains `sources`.

    pid: int64 [n], 0..M-1 over all sources, -1 for an image that does not train. domain: int64 [n], index into
    `sources`. held_out: rows of the identities kept aside, per domain (empty where none are).
    """

    images: np.ndarray
    records: list[Record]
    sources: tuple[str, ...]
    pid: np.ndarray
    domain: np.ndarray
    held_out: dict[str, np.ndarray]

    @property
    def num_ids(self) -> int:
        """M, the number of identities to train on."""
        return int(self.pid.max()) + 1


def training_set(
    images: np.ndarray, records: list[Record], sources: Sequence[str], val_fraction: float, seed: int
) -> TrainingSet:
    """Numbers domains and identities; images of split train or all train, but for val_fraction of the identities.

    Raises ValueError for a domain without anything to train on, or with too little to hold out.
    """
    name = np.array([record.domain for record in records])
    split = np.array([record.split for record in records])
    own_pid = np.array([record.pid for record in records])
    camid = np.array([record.camid for record in records])
    trains = np.isin(split, TRAIN_SPLITS)
    domain = np.zeros(len(records), np.int64)
    for number, source in enumerate(sources):
        domain[name == source] = number
        if not (trains & (name == source)).any():
            raise ValueError(f"domain {source!r} has no image of split train or all: leave it out of the training")

    held_out = np.zeros(len(records), bool)
    if val_fraction:
        rows = np.flatnonzero(trains)
        held_out[rows] = held_out_split(own_pid[rows], camid[rows], domain[rows], val_fraction, seed, sources)
    learns = np.flatnonzero(trains & ~held_out)
    pid = np.full(len(records), -1, np.int64)
    _, pid[learns] = np.unique(np.stack([domain[learns], own_pid[learns]]), axis=1, return_inverse=True)
    return TrainingSet(
        images=images,
        records=records,
        sources=tuple(sources),
        pid=pid,
        domain=domain,
        held_out={source: np.flatnonzero(held_out & (name == source)) for source in sources if val_fraction},
    )
