"""Prepared data sets: `prepare` writes a set's many images once into a few ArrayRecord files.

A prepared set is the folder DATA_DIR/reid/NAME/VERSION, which gets its name when it is complete.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metabin_jax.data import cache
from metabin_jax.data.records import SPLITS, Record
from metabin_jax.data.sets import catalogue
from metabin_jax.runtime.errors import UserError, first_line, needs
from metabin_jax.runtime.files import read_json

NAME = "reid"
VERSION = "1.0.0"
LABELS = "metadata.json"  # tfds writes it before the folder gets its name
FEATURES = "features.json"  # tfds imports the modules of the classes that it names
CLASSES = {
    f"tensorflow_datasets.core.features.{name}"
    for name in ("features_dict.FeaturesDict", "image_feature.Image", "scalar.Scalar", "text_feature.Text")
}
AGAIN = "remove the folder and run metabin prepare again"
LABEL_TYPES = {"path": str, "pid": int, "camid": int, "split": str}
TFDS_SPLITS = {split: split for split in SPLITS} | {"all": "all_images"}  # tfds reserves "all"


def read(data_dir: str | Path, domains: Sequence[str] = ()) -> list[Record]:
    """The records of the prepared `domains`, in this order, or of all, sorted by name; opens no image.

    A record's path is the set's folder in data_dir, then the path that the image had below the root of its set.

    Raises FileNotFoundError if a domain is not prepared, or none is; UserError if metabin_jax[sets] is not installed.
    """
    needs("reading prepared sets", "sets", "tensorflow_datasets")
    data_dir = Path(data_dir).expanduser()
    present = sorted(path.parent.parent.name for path in (data_dir / NAME).glob(f"*/{VERSION}/{LABELS}"))
    missing = [domain for domain in domains if domain not in present]
    if missing or not present:
        what = "NAME" if not missing else missing[0] if missing[0] in catalogue.SETS else "folder"
        raise FileNotFoundError(
            f"{f'{missing[0]!r} is not' if missing else 'nothing is'} prepared in {data_dir}, which holds"
            f" {', '.join(present) or 'no set'}: run metabin prepare {what} --manual_dir=DIR --data_dir={data_dir}"
        )
    folders = [(folder_of_set(domain, data_dir), domain) for domain in domains or present]
    return [record for folder, domain in folders for record in _records(_labels(folder), folder, domain)]


def load_images(records: Sequence[Record], size: tuple[int, int], cache_dir: str | Path) -> np.memmap:
    """The images of records that `read` returned, as `cache.load_images` returns them."""
    return cache.load_images(records, size, cache_dir, *stamp_and_file(records))


def stamp_and_file(records: Sequence[Record]) -> tuple[Callable[[Record], str], Callable[[Record], io.BytesIO]]:
    """Of each record: a stamp that stays the same if the prepared set is moved, and the image file."""
    import tensorflow_datasets as tfds  # takes seconds

    places: dict[Record, tuple[Sequence, int]] = {}  # an ArrayRecord source and a row of it
    stamps: dict[Record, str] = {}
    for domain, folder in sorted({(record.domain, _folder_of(record)) for record in records}):
        _check_features(Path(folder))
        try:
            builder = tfds.builder_from_directory(folder)
            sources = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
        except Exception as error:  # damaged files make tfds raise nearly anything
            raise UserError(f"{folder} is damaged ({first_line(error)}): {AGAIN}") from error
        rows = dict.fromkeys(SPLITS, 0)
        labels = _labels(folder)
        for record, path in zip(_records(labels, folder, domain), labels["path"], strict=True):
            places[record] = (sources[TFDS_SPLITS[record.split]], rows[record.split])
            stamps[record] = f"{path}\0{record.split}\0{labels['digest']}"
            rows[record.split] += 1

    def image_file(record: Record) -> io.BytesIO:
        source, row = places[record]
        return io.BytesIO(source[row]["image"])

    return stamps.__getitem__, image_file


def folder_of_set(name: str, data_dir: Path) -> Path:
    return data_dir / NAME / name / VERSION


def _folder_of(record: Record) -> str:
    inner = f"/{NAME}/{record.domain}/{VERSION}"
    return record.path.rpartition(f"{inner}/")[0] + inner


def _labels(folder: str | Path) -> dict[str, Any]:
    """The labels of a prepared set, columns of one length, and its digest. Raises UserError if they are damaged."""
    path = Path(folder) / LABELS
    labels = read_json(path, AGAIN)
    try:
        columns = {name: [type(value) for value in labels[name]] for name in LABEL_TYPES}
        sound = len({*map(len, columns.values())}) == 1 and isinstance(labels["digest"], str)
        sound &= all({*types} <= {LABEL_TYPES[name]} for name, types in columns.items())
        sound &= {*labels["split"]} <= {*SPLITS}
    except (TypeError, KeyError):
        sound = False
    if not sound:
        raise UserError(f"{path} does not hold the labels of a prepared set: {AGAIN}")
    return labels


def _check_features(folder: Path) -> None:
    """Raises UserError if tfds would import anything but its own classes to read the set.

    The name of a class has a dot, and nothing else that tfds writes has one.
    """
    left = [read_json(folder / FEATURES, AGAIN)]
    while left:
        value = left.pop()
        if isinstance(value, str) and "." in value and value not in CLASSES:
            raise UserError(f"{folder / FEATURES} names {value!r}, which no prepared set needs: {AGAIN}")
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _records(labels: dict, folder: str | Path, domain: str) -> list[Record]:
    columns = zip(labels["path"], labels["pid"], labels["camid"], labels["split"], strict=True)
    return [Record(f"{folder}/{path}", pid, camid, domain, split) for path, pid, camid, split in columns]
