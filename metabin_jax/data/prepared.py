"""Data sets prepared once by tensorflow-datasets: a few ArrayRecord files per set in place of its many images.

A prepared set is the folder DATA_DIR/reid/NAME/VERSION, which takes its name only when it is complete.
"""

import contextlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from metabin_jax.data import sets
from metabin_jax.data.records import SPLITS, Record, read_folder

NAME = "reid"
VERSION = "1.0.0"
LABELS = "metadata.json"  # tfds writes it before the folder takes its name
TFDS_SPLITS = {split: split for split in SPLITS} | {"all": "all_images"}  # tfds keeps "all" for itself
OUR_SPLITS = {theirs: ours for ours, theirs in TFDS_SPLITS.items()}
DOMAIN_NAME = re.compile(r"[\w+.-]+")  # what tfds takes for the name of a config
SPLIT_FILES = ("splits*.json", "features_and_partitions.mat")


def prepare(name: str, manual_dir: str | Path, data_dir: str | Path, allow_incomplete: bool = False) -> None:
    """Prepares one set of `sets.SETS`, "all" that are in manual_dir, or a "folder" of domains in Market-1501 naming.

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
    if name not in ("all", *sets.SETS):
        raise ValueError(f"there is no data set {name!r}: choose from all, folder, {', '.join(sets.SETS)}")
    errors = []
    for known in _found(manual_dir) if name == "all" else [name]:
        try:
            _prepare(known, manual_dir, data_dir, allow_incomplete)
        except ValueError as error:  # the next one of "all" may be in order
            errors.append(error)
    for another in errors[1:]:
        print(f"not prepared either: {another}")
    if errors:
        raise errors[0]


def read(data_dir: str | Path, domains: Sequence[str] = ()) -> list[Record]:
    """The records of the prepared `domains`, in this order, or of all, sorted by name; opens no image.

    A record's path is that below its set's root, below the set's folder in data_dir.

    Raises:
      FileNotFoundError: a domain is not prepared, or none is.
    """
    data_dir = Path(data_dir).expanduser()
    present = sorted(path.parent.parent.name for path in (data_dir / NAME).glob(f"*/{VERSION}/{LABELS}"))
    missing = [domain for domain in domains if domain not in present]
    if missing or not present:
        what = "NAME" if not missing else missing[0] if missing[0] in sets.SETS else "folder"
        raise FileNotFoundError(
            f"{f'{missing[0]!r} is not' if missing else 'nothing is'} prepared in {data_dir}, which holds"
            f" {', '.join(present) or 'no set'}: run metabin prepare {what} --manual_dir=DIR --data_dir={data_dir}"
        )
    folders = [(_folder(domain, data_dir), domain) for domain in domains or present]
    return [record for folder, domain in folders for record in _records(_labels(folder), folder, domain)]


class Images:
    """The images of records that `read` returned, for `cache.load_images`."""

    def __init__(self, records: Sequence[Record]):
        import tensorflow_datasets as tfds  # slow, so late

        self._places: dict[Record, tuple[Sequence, int]] = {}  # an ArrayRecord source and a row of it
        self._stamps: dict[Record, str] = {}
        for domain, folder in sorted({(record.domain, _folder_of(record)) for record in records}):
            builder = tfds.builder_from_directory(folder)
            sources = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
            rows = dict.fromkeys(SPLITS, 0)
            labels = _labels(folder)
            for record, path in zip(_records(labels, folder, domain), labels["path"], strict=True):
                self._places[record] = (sources[TFDS_SPLITS[record.split]], rows[record.split])
                self._stamps[record] = f"{path}\0{record.split}\0{labels['digest']}"
                rows[record.split] += 1

    def stamp(self, record: Record) -> str:
        """Changes with the prepared set, and not with the place where it is."""
        return self._stamps[record]

    def open(self, record: Record) -> io.BytesIO:
        """The image file as it was."""
        source, row = self._places[record]
        return io.BytesIO(source[row]["image"])


def _prepare(name: str, manual_dir: Path, data_dir: Path, allow_incomplete: bool) -> None:
    folder = _folder(name, data_dir)
    if (folder / LABELS).is_file():
        print(f"{name} is already prepared in {folder}")
        return
    if folder.exists():
        raise ValueError(f"{folder} exists but holds no prepared set: remove it")
    import tensorflow_datasets as tfds  # slow, so late

    from metabin_jax.benchmark.splits import SINGLE_SHOT
    from metabin_jax.data.reid.reid_dataset_builder import Builder

    for killed in folder.parent.glob(f"incomplete.*_{VERSION}"):  # what a killed preparation left
        shutil.rmtree(killed)
    if name in SINGLE_SHOT:
        _copy_split_file(name, sets.find(manual_dir, name)[1], data_dir / "splits")
    with _quiet():
        config = name if name in sets.SETS else tfds.core.BuilderConfig(name=name)
        builder = Builder(config=config, data_dir=data_dir, allow_incomplete=allow_incomplete)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    records = read(data_dir, [name])
    print(f"{name}: {len(records):,} images are prepared in {folder}")
    if name in sets.SETS and allow_incomplete:
        try:
            sets.check_counts(sets.SETS[name], records)
        except ValueError as error:
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
            raise ValueError(f"{folder / domain}: a domain's name may have letters, digits and _ + - . only: rename it")
        if domain in sets.SETS:
            raise ValueError(
                f"{folder / domain} has the name of a published set: run metabin prepare {domain}, or rename it"
            )
    return domains


def _found(manual_dir: Path) -> list[str]:
    """The known sets in a folder, in the order of `sets.SETS`; prints which others are not there.

    Raises FileNotFoundError or ValueError as `sets.find`: no folder, no set, or a folder that may be one or another.
    """
    found = [name for name in sets.SETS if name in sets.names_at(manual_dir)] or [sets.find(manual_dir)[0].name]
    for name in found:
        sets.find(sets.find(manual_dir, name)[1])
    if missing := [name for name in sets.SETS if name not in found]:
        print(f"not in {manual_dir}: {', '.join(missing)}")
    return found


def _copy_split_file(name: str, root: Path, into: Path) -> None:
    """Copies a target's own evaluation splits, from its root or, where it is the only set there, the folder above."""
    folders = [root, root.parent] if sets.names_at(root.parent) == [name] else [root]
    files = [path for folder in folders for pattern in SPLIT_FILES for path in sorted(folder.glob(pattern))]
    for file in files[:1]:
        into.mkdir(parents=True, exist_ok=True)
        copy = into / f"{name}{file.suffix}"
        temporary = copy.with_name(f".{copy.name}.tmp")
        shutil.copyfile(file, temporary)
        os.replace(temporary, copy)
        print(f"{name}: the evaluation splits are those of {file}")


def _folder(name: str, data_dir: Path) -> Path:
    return data_dir / NAME / name / VERSION


def _folder_of(record: Record) -> str:
    inner = f"/{NAME}/{record.domain}/{VERSION}"
    return record.path.rpartition(f"{inner}/")[0] + inner


def _labels(folder: str | Path) -> dict:
    return json.loads((Path(folder) / LABELS).read_text(encoding="utf-8"))


def _records(labels: dict, folder: str | Path, domain: str) -> list[Record]:
    columns = zip(labels["path"], labels["pid"], labels["camid"], labels["split"], strict=True)
    return [Record(f"{folder}/{path}", pid, camid, domain, split) for path, pid, camid, split in columns]
