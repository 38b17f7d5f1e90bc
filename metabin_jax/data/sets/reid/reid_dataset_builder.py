"""The sets of `catalogue.SETS`, and any domain in Market-1501 naming, for tensorflow-datasets without TensorFlow.

tensorflow-datasets is built for use with TensorFlow. The parts of its internals that make it work without are all used
in this file: other files use its public interface only.
"""

import contextlib
import hashlib
import io
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from metabin_jax.data import cache
from metabin_jax.data.records import SPLITS, Record, read_domain
from metabin_jax.data.sets import catalogue, extraction, prepared
from metabin_jax.runtime.progress import Progress

IMAGES_PER_SHARD = 20_000
IMAGES_AT_ONCE = 256  # held in memory


class Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Replaces the method of tfds, which leaves a temporary folder and may ask a server."""


class Builder(tfds.core.GeneratorBasedBuilder):
    """tfds.builder("reid/NAME"), once this module is imported. NAME is one of SETS, or a folder in manual_dir.

    An example has image (the file unchanged, of any mode), pid, camid, domain, path (below the set's root) and split.
    Examples come in the order of the readers. `info.metadata` has the labels of all images, in that order, and a
    digest of everything. The tfds splits are named as in `prepared.TFDS_SPLITS`.

    tfds decodes an image by `numpy.asarray`, which returns indices for an image with a palette. Use
    decoders={"image": tfds.decode.SkipDecoding()} to get the file.
    """

    name = prepared.NAME
    VERSION = tfds.core.Version(prepared.VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class has no ClassVar)
        tfds.core.BuilderConfig(name=data_set.name, description=str(data_set)) for data_set in catalogue.SETS.values()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir holds the sets as they were unpacked, or one folder per domain."

    def __init__(self, *, allow_incomplete: bool = False, file_format: Any = "array_record", **kwargs: Any):
        """allow_incomplete: also prepare a set whose counts differ from the published ones. Others: as in tfds."""
        self._allow_incomplete = allow_incomplete
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return Info(
            builder=self,
            description="Images of persons, or of anything, under identities and cameras.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "pid": tfds.features.Scalar(np.int64),
                    "camid": tfds.features.Scalar(np.int64),
                    "domain": tfds.features.Text(),
                    "path": tfds.features.Text(),
                    "split": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        root, records = self._raw(Path(dl_manager.manual_dir))
        paths = [Path(record.path).relative_to(root).as_posix() for record in records]
        columns = {field: [getattr(record, field) for record in records] for field in ("pid", "camid", "split")}
        self.info.metadata.update(path=paths, **columns)
        rows = list(zip(range(len(records)), paths, records, strict=True))
        of_split = {split: [row for row in rows if row[2].split == split] for split in SPLITS}
        return {prepared.TFDS_SPLITS[split]: self._generate_examples(rows) for split, rows in of_split.items() if rows}

    def _raw(self, manual_dir: Path) -> tuple[Path, list[Record]]:
        """The root and the records of the set. Raises UserError or FileNotFoundError as the readers do."""
        name = self.builder_config.name
        if name not in catalogue.SETS:
            return manual_dir / name, read_domain(manual_dir / name, name)
        root = extraction.ready(name, manual_dir, Path(self.data_dir_root) / "extracted")
        records = catalogue.read_set(name, root)
        if not self._allow_incomplete:
            catalogue.check_counts(catalogue.SETS[name], records)
        return root, records

    def _generate_examples(self, rows: Sequence[tuple[int, str, Record]]) -> Iterator[tuple[int, dict]]:
        """Yields (place in the set, example); broken images are noted and left out."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside the GIL
            for start in range(0, len(rows), IMAGES_AT_ONCE):
                part = rows[start : start + IMAGES_AT_ONCE]
                contents = pool.map(_content, [record.path for _, _, record in part])
                for (row, path, record), content in zip(part, contents, strict=True):
                    if isinstance(content, str):
                        self._broken.append(content)
                        continue
                    labels: dict[str, Any] = {"pid": record.pid, "camid": record.camid, "domain": record.domain}
                    labels |= {"path": os.fsencode(path), "split": record.split}
                    self._digest.update(f"{row} {labels} {len(content)} ".encode() + content)
                    yield row, {"image": content, **labels}
                    self._progress.update()

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        """Replaces the method of tfds, which holds a split in memory and needs TensorFlow above 1 GB."""
        self._broken: list[str] = []
        self._digest = hashlib.sha256()
        splits = self._split_generators(dl_manager)
        split_of_image = [prepared.TFDS_SPLITS[split] for split in self.info.metadata["split"]]
        with Progress(self.builder_config.name, len(split_of_image)) as self._progress:
            infos = [self._write(split, examples, split_of_image.count(split)) for split, examples in splits.items()]
        if self._broken:
            raise cache.broken_error(self._broken, len(split_of_image))
        self.info.metadata["digest"] = self._digest.hexdigest()
        return infos

    def _write(self, split: str, examples: Iterator[tuple[int, dict]], number: int) -> tfds.core.SplitInfo:
        features = self.info.features
        serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
        serialized = ((row, serializer.serialize_example(features.encode_example(ex))) for row, ex in examples)
        template = self._get_filename_template(split)
        lengths = [min(IMAGES_PER_SHARD, number - start) for start in range(0, number, IMAGES_PER_SHARD)]
        paths = template.sharded_filepaths(len(lengths))
        for path, length in zip(paths, lengths, strict=True):
            try:
                self._example_writer().write(path, itertools.islice(serialized, length))
            except RuntimeError as error:  # ArrayRecord's for a full disk and the like
                raise OSError(f"cannot write {self.builder_config.name}: {error}") from error
        size = sum(path.stat().length for path in paths)
        return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)


def build(name: str, manual_dir: Path, data_dir: Path, allow_incomplete: bool) -> None:
    """Prepares one set, or one domain in Market-1501 naming, without the output of tfds."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config = name if name in catalogue.SETS else tfds.core.BuilderConfig(name=name)
            builder = Builder(config=config, data_dir=data_dir, allow_incomplete=allow_incomplete)
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    finally:
        absl.setLevel(level)


def _content(path: str) -> bytes | str:
    """The content of the file or, if the cache cannot decode it, what is wrong with it."""
    try:
        content = Path(path).read_bytes()
        cache.upright(io.BytesIO(content))
    except Exception as error:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
        return cache.fault(path, error)
    return content
