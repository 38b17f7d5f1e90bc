"""Packs data sets for `prepared`: published ones, checked against their counts, or a folder of domains."""

import os
import re
import shutil
from pathlib import Path

from metabin_jax.data.records import read_folder
from metabin_jax.data.sets import catalogue, prepared
from metabin_jax.runtime.errors import UserError, needs
from metabin_jax.runtime.files import whole

DOMAIN_NAME = re.compile(r"[\w+.-]+")  # tfds accepts these names of a config
SPLIT_FILES = ("splits*.json", "features_and_partitions.mat")


def prepare(name: str, manual_dir: str | Path, data_dir: str | Path, allow_incomplete: bool = False) -> None:
    """Prepares one set of `SETS`, "all" that are in manual_dir, or a "folder" of domains in Market-1501 naming.

    A set that is prepared already is left as it is. The files that hold the evaluation splits of a target are copied to
    data_dir/splits. Prints a line per set, and progress on stderr.

    manual_dir: holds the sets as they were unpacked, or is one; for "folder", holds one folder per domain. data_dir: of
    tensorflow-datasets. allow_incomplete: also prepare a set whose counts differ from the published ones.

    Raises FileNotFoundError if manual_dir is not a folder, and UserError for an unknown set, wrong file names or
    counts, broken images, or if metabin_jax[sets] is not installed.
    """
    needs("preparing data sets", "sets", "tensorflow_datasets", "importlib_resources", "h5py")
    manual_dir, data_dir = (Path(os.path.abspath(os.path.expanduser(folder))) for folder in (manual_dir, data_dir))
    if manual_dir.is_dir() and not any(manual_dir.iterdir()):
        raise UserError(f"{manual_dir} is empty: unpack the data sets that you may use there")
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
        except UserError as error:  # the next set may be complete
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
    for killed in folder.parent.glob(f"incomplete.*_{prepared.VERSION}"):  # left by a killed preparation
        shutil.rmtree(killed)
    if name in catalogue.SINGLE_SHOT:
        _copy_split_file(name, catalogue.find(manual_dir, name)[1], data_dir / "splits")
    from metabin_jax.data.sets.reid import reid_dataset_builder  # tfds takes seconds

    reid_dataset_builder.build(name, manual_dir, data_dir, allow_incomplete)
    records = prepared.read(data_dir, [name])
    print(f"{name}: {len(records):,} images are prepared in {folder}")
    if name in catalogue.SETS and allow_incomplete:
        try:
            catalogue.check_counts(catalogue.SETS[name], records)
        except UserError as error:
            print(f"  {error}")


def _domains(folder: Path) -> list[str]:
    """The domains in a folder. Raises as `read_folder` does, and UserError for a name that tfds refuses."""
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
    """The known sets in a folder, in the order of `catalogue.SETS`. Prints which others are missing.

    Raises FileNotFoundError or UserError as `find` does: no folder, no set, or a folder that fits two sets.
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
    """Copies a target's own evaluation splits from its root, or from the folder above if that holds no other set."""
    folders = [root, root.parent] if catalogue.names_at(root.parent) == [name] else [root]
    files = [path for folder in folders for pattern in SPLIT_FILES for path in sorted(folder.glob(pattern))]
    for file in files[:1]:
        into.mkdir(parents=True, exist_ok=True)
        with whole(into / f"{name}{file.suffix}") as temporary:
            shutil.copyfile(file, temporary)
        print(f"{name}: the evaluation splits are those of {file}")
