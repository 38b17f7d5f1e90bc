"""Packs data sets for `prepared`: published ones, checked against their counts, or a folder of domains."""

import contextlib
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from metabin_jax.data.records import read_folder
from metabin_jax.data.sets import catalogue, prepared
from metabin_jax.data.sets.reid.reid_dataset_builder import Builder
from metabin_jax.runtime.errors import UserError

DOMAIN_NAME = re.compile(r"[\w+.-]+")  # what tfds takes for the name of a config
SPLIT_FILES = ("splits*.json", "features_and_partitions.mat")


def prepare(name: str, manual_dir: str | Path, data_dir: str | Path, allow_incomplete: bool = False) -> None:
    """Prepares one set of `SETS`, "all" that are in manual_dir, or a "folder" of domains in Market-1501 naming.

    What is prepared already is left as it is. Files with the splits of a target that has several are copied to
    data_dir/splits. Prints a line per set; a bar on stderr where that is a terminal.

    Args:
      manual_dir: holds the sets as they were unpacked, or is one; for "folder", holds one folder per domain.
      data_dir: of tensorflow-datasets; created if need be.
      allow_incomplete: prepare a set whose counts are not the published ones, too.

    Raises:
      FileNotFoundError: manual_dir is not a folder.
      ValueError: unknown name, no such set, wrong file names, wrong counts, broken images (names the first five).
    """
    manual_dir, data_dir = (Path(os.path.abspath(os.path.expanduser(folder))) for folder in (manual_dir, data_dir))
    if name == "folder":
        for domain in _domains(manual_dir):
            _prepare(domain, manual_dir, data_dir, allow_incomplete)
        return
    if name not in ("all", *catalogue.SETS):
        raise UserError(f"there is no data set {name!r}: choose from all, folder, {', '.join(catalogue.SETS)}")
    errors = []
    for known in _found(manual_dir) if name == "all" else [name]:
        try:
            _prepare(known, manual_dir, data_dir, allow_incomplete)
        except UserError as error:  # the next one of "all" may be in order
            errors.append(error)
    for another in errors[1:]:
        print(f"not prepared either: {another}")
    if errors:
        raise errors[0]


def _prepare(name: str, manual_dir: Path, data_dir: Path, allow_incomplete: bool) -> None:
    folder = prepared.folder_of_set(name, data_dir)
    if (folder / prepared.LABELS).is_file():
        print(f"{name} is already prepared in {folder}")
        return
    if folder.exists():
        raise UserError(f"{folder} exists but holds no prepared set: remove it")
    for killed in folder.parent.glob(f"incomplete.*_{prepared.VERSION}"):  # what a killed preparation left
        shutil.rmtree(killed)
    if name in catalogue.SINGLE_SHOT:
        _copy_split_file(name, catalogue.find(manual_dir, name)[1], data_dir / "splits")
    with _quiet():
        config = name if name in catalogue.SETS else tfds.core.BuilderConfig(name=name)
        builder = Builder(config=config, data_dir=data_dir, allow_incomplete=allow_incomplete)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    records = prepared.read(data_dir, [name])
    print(f"{name}: {len(records):,} images are prepared in {folder}")
    if name in catalogue.SETS and allow_incomplete:
        try:
            catalogue.check_counts(catalogue.SETS[name], records)
        except UserError as error:
            print(f"  {error}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """tfds prints and logs what we say in fewer words."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.setLevel(level)


def _domains(folder: Path) -> list[str]:
    """The domains in a folder. Raises as `read_folder`, and ValueError for a name that cannot be taken."""
    domains = list(dict.fromkeys(record.domain for record in read_folder(folder)))
    for domain in domains:
        if not DOMAIN_NAME.fullmatch(domain):
            raise UserError(f"{folder / domain}: a domain's name may have letters, digits and _ + - . only: rename it")
        if domain in catalogue.SETS:
            raise UserError(
                f"{folder / domain} has the name of a published set: run metabin prepare {domain}, or rename it"
            )
    return domains


def _found(manual_dir: Path) -> list[str]:
    """The known sets in a folder, in the order of `catalogue.SETS`; prints which others are not there.

    Raises FileNotFoundError or ValueError as `find`: no folder, no set, or a folder that may be one or another.
    """
    found = [name for name in catalogue.SETS if name in catalogue.names_at(manual_dir)] or [
        catalogue.find(manual_dir)[0].name
    ]
    for name in found:
        catalogue.find(catalogue.find(manual_dir, name)[1])
    if missing := [name for name in catalogue.SETS if name not in found]:
        print(f"not in {manual_dir}: {', '.join(missing)}")
    return found


def _copy_split_file(name: str, root: Path, into: Path) -> None:
    """Copies a target's own evaluation splits, from its root or, where it is the only set there, the folder above."""
    folders = [root, root.parent] if catalogue.names_at(root.parent) == [name] else [root]
    files = [path for folder in folders for pattern in SPLIT_FILES for path in sorted(folder.glob(pattern))]
    for file in files[:1]:
        into.mkdir(parents=True, exist_ok=True)
        copy = into / f"{name}{file.suffix}"
        temporary = copy.with_name(f".{copy.name}.tmp")
        shutil.copyfile(file, temporary)
        os.replace(temporary, copy)
        print(f"{name}: the evaluation splits are those of {file}")
