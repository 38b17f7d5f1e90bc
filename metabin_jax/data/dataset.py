"""From a source of images to what a run trains on."""

import dataclasses
import functools
import io
import operator
from collections.abc import Callable, Collection, Sequence
from typing import IO, Literal

import numpy as np
from PIL import Image

from metabin_jax.data import cache, synthetic
from metabin_jax.data.manifest import read_csv
from metabin_jax.data.records import Record, is_distractor, read_folder
from metabin_jax.data.sampler import held_out_split
from metabin_jax.data.sets import prepared
from metabin_jax.runtime.errors import UserError, is_utf8


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of data set.

    read: (path, domains) -> the records; `domains` are those asked for (all if empty), and it may return more.
    images: (records, size, cache_dir) -> uint8 [n, H, W, 3]; by default the records' paths are decoded by the cache.
    files: records -> (one of them -> what PIL opens of its image at the image's own size); by default its path.
    """

    read: Callable[[str, Sequence[str]], list[Record]]
    images: Callable[[Sequence[Record], tuple[int, int], str], np.ndarray] = cache.load_images
    files: Callable[[Sequence[Record]], Callable[[Record], str | IO[bytes]]] = lambda _: operator.attrgetter("path")


def _list_synthetic(identities: str, domains: Sequence[str]) -> list[Record]:
    """Of all networks, each with so many identities; by default 40."""
    return synthetic.list_records(ids_per_domain=int(identities)) if identities else synthetic.list_records()


def _draw_synthetic(records: Sequence[Record], size: tuple[int, int], cache_dir: str) -> np.ndarray:
    if not cache_dir:
        return np.stack([synthetic.draw_record(record, size) for record in records])

    drawn = functools.partial(_drawn, size=size)
    return cache.load_images(records, size, cache_dir, lambda record: f"{record.path}, {synthetic.DRAWING}", drawn)


def _drawn(record: Record, size: tuple[int, int] = (160, 80)) -> IO[bytes]:
    Image.fromarray(synthetic.draw_record(record, size)).save(file := io.BytesIO(), "png", compress_level=0)
    return file


# config.data.source -> how it is read. Add an entry to train and evaluate on a kind of data set of your own.
SOURCES = {
    "synthetic": Source(_list_synthetic, _draw_synthetic, lambda _: _drawn),
    "folder": Source(
        lambda path, domains: read_csv(path) if str(path).lower().endswith(".csv") else read_folder(path, domains)
    ),
    "csv": Source(lambda path, domains: read_csv(path)),
    "prepared": Source(prepared.read, prepared.load_images, lambda records: prepared.stamp_and_file(records)[1]),
}


def read(source: str, path: str, domains: Sequence[str] = ()) -> list[Record]:
    """The records of `domains`, in this order, or of all domains; opens no image.

    path: the folder of domains, the CSV manifest, or the data_dir that `metabin prepare` wrote to; of synthetic people
    the number of identities of each network.
    Raises UserError if a domain is not in the data or its name is not UTF-8, and what the reader of the source (one of
    SOURCES) raises.
    """
    records = SOURCES[source].read(path, domains)
    names = list(dict.fromkeys(record.domain for record in records))
    for domain in domains:
        if domain not in names:
            raise UserError(f"there is no domain {domain!r} in the data, which has {', '.join(names)}")
    for domain in domains or names:
        if not is_utf8(domain):
            raise UserError(f"domain {domain!a} is not a name in UTF-8, which the tables need: rename it")
    return [record for domain in domains or names for record in records if record.domain == domain]


def load_images(source: str, records: Sequence[Record], size: tuple[int, int], cache_dir: str) -> np.ndarray:
    """The images of `records` as `read` returns them: uint8 [n, H, W, 3]. Raises as `cache.load_images` does."""
    return SOURCES[source].images(records, size, cache_dir)


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What n records are to a run.

    domains: the K names of what Algorithm 1 calls domains: the sources, or their cameras.
    pid: int64 [n], 0..M-1 over all sources; -1 marks an image that does not train.
    domain: int64 [n], index into `domains`.
    held_out: rows of the identities held out, by source; empty if none are.
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
    """Numbers domains and identities, and holds out val_fraction of the identities.

    Records of other splits and distractors are dropped. domain_by: a domain is one of the `sources`, or one of their
    cameras. Raises UserError if a source has nothing to train on, or too little to hold out.
    """
    records = [record for record in records if record.split in splits and not is_distractor(record)]
    for source in sources:
        if source not in {record.domain for record in records}:
            raise UserError(
                f"domain {source!r} has no image of split {' or '.join(splits)}: leave it out of the training"
            )
    labels = [(record.pid, record.camid, sources.index(record.domain)) for record in records]
    own_pid, camid, source_number = np.array(labels).T
    held_out = np.zeros(len(records), bool)
    if val_fraction:
        held_out = held_out_split(own_pid, camid, source_number, val_fraction, seed, sources)
    pid = np.full(len(records), -1)
    _, pid[~held_out] = np.unique(np.stack([source_number, own_pid])[:, ~held_out], axis=1, return_inverse=True)
    rows_of = {source: np.flatnonzero(held_out & (source_number == k)) for k, source in enumerate(sources)}
    domains, domain = tuple(sources), source_number
    if domain_by == "camera":
        if (camid < 0).any():
            raise UserError(
                "config.data.domain_by is camera, but some images have none: name their cameras, or leave it"
            )
        cameras, domain = np.unique(np.stack([source_number, camid]), axis=1, return_inverse=True)
        domains = tuple(f"{sources[k]}, camera {camera}" for k, camera in cameras.T.tolist())
    return TrainingSet(records, domains, pid, domain, rows_of if val_fraction else {})
