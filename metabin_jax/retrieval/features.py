"""Feature files, .npz or .parquet: `metabin embed` writes them, `metabin search` and `calibrate` read them."""

import dataclasses
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabin_jax.runtime import files
from metabin_jax.runtime.errors import UserError, first_line, needs

SUFFIXES = (".npz", ".parquet")
MADE_BY = "made_by"
FIELDS = {"run": str, "step": int, "model": str, "method": str, "height": int, "width": int, "weights": str}  # of it
LONGEST = 2**14  # letters of a text in a .parquet; NumPy gives every text of a column the room of the longest
DENSEST = 16  # times its own size a .parquet may be in memory: features hardly compress
KINDS = {"path": "U", "pid": "U", "camid": "i", "domain": "U", "feature": "f"}  # column -> NumPy's dtype.kind


@dataclasses.dataclass(frozen=True)
class Features:
    """n images and their features.

    Attributes:
      path: text [n], absolute, so that it opens from any folder.
      feature: float32 [n, D], of length one: the product of two is their cosine similarity.
      pid: text [n], "" if unknown. camid: int64 [n], -1 if unknown. domain: text [n], "" if unknown.
      made_by: {"run" (workdir), "step", "model", "method", "height", "width" (pixels), "weights" (digest)}.
    """

    path: NDArray[np.str_]
    feature: NDArray[np.float32]
    pid: NDArray[np.str_]
    camid: NDArray[np.int64]
    domain: NDArray[np.str_]
    made_by: dict[str, Any]

    def __len__(self) -> int:
        return len(self.path)

    def labels(self, row: int) -> tuple[str, str, int | None, str]:
        """Path, pid, camid (None if unknown) and domain of an image, for tables."""
        camid = int(self.camid[row])
        return str(self.path[row]), str(self.pid[row]), None if camid < 0 else camid, str(self.domain[row])


def check_same_model(
    first: dict, first_name: str, second: dict, second_name: str, advice: str = "embed both with one run"
) -> None:
    """Raises UserError unless both are `made_by` one net at one image size. Other features cannot be compared."""
    if any(first[name] != second[name] for name in ("weights", "height", "width")):
        raise UserError(
            f"{first_name} is of another model than {second_name}: {describe(first)} against {describe(second)};"
            f" {advice}."
        )


def join(parts: Sequence[Features]) -> Features:
    """The images of all parts, which are of one model, in their order."""
    parts = [part for part in parts if len(part)] or parts[:1]  # an empty gallery does not know its D
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in KINDS}
    return Features(**columns, made_by=parts[0].made_by)


def check_made_by(made_by: Any) -> None:
    """Raises ValueError if this is not what features are `made_by`."""
    if not isinstance(made_by, dict) or any(type(made_by.get(name)) is not kind for name, kind in FIELDS.items()):
        raise ValueError("it does not say which model it is of")


def describe(made_by: dict) -> str:
    """The run, its step, image size and weights in words."""
    return (
        f"{made_by['run']}, step {made_by['step']}, {made_by['height']} x {made_by['width']} pixels,"
        f" weights {made_by['weights'][:8]}"
    )


def check_output(path: str | Path) -> Path:
    """The path of a feature file to write. Raises UserError or OSError if it cannot be written."""
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: the name of a feature file ends in {' or '.join(SUFFIXES)}.")
    if path.suffix == ".parquet":
        _need_pyarrow(path)
    return files.check_writable(path)


def write(path: Path, features: Features) -> None:
    """Writes .npz or .parquet, whole or not at all.

    The .npz has the arrays of `Features` and made_by as JSON; the .parquet has them as columns, feature as a list of
    fixed size, and made_by in the schema's metadata.
    """
    made_by = json.dumps(features.made_by)
    columns = {name: getattr(features, name) for name in KINDS}
    with files.whole(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".npz":
            np.savez(file, **columns, made_by=np.array(made_by))
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat, width = pa.array(columns.pop("feature").ravel()), features.feature.shape[1]
        arrays = {name: pa.array(values.tolist()) for name, values in columns.items()}
        arrays["feature"] = pa.FixedSizeListArray.from_arrays(flat, width)
        pq.write_table(pa.table(arrays).replace_schema_metadata({MADE_BY: made_by}), file, write_page_checksum=True)


def read(path: str | Path) -> Features:
    """Reads what `write` wrote. Raises FileNotFoundError, or UserError for a file of another kind."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"the feature file {path} does not exist: metabin embed writes one.")
    if path.suffix == ".parquet":
        _need_pyarrow(path)
    try:
        columns = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
        made_by = files.parse_json(str(columns.pop(MADE_BY)))
        check_made_by(made_by)
        features = Features(**columns, made_by=made_by)
        if {len(values) for values in columns.values()} != {len(features) or 1}:
            raise ValueError("its columns differ in length, or are empty")
        if {name: values.dtype.kind for name, values in columns.items()} != KINDS or features.feature.ndim != 2:
            raise ValueError("its columns hold something else")
        if not np.allclose(np.linalg.norm(features.feature, axis=1), 1, atol=1e-3):
            raise ValueError("its features are not of length one")
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise UserError(f"{path} is not a feature file of metabin embed ({first_line(error)}).") from error
    return features


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return {name: _read_array(archive, f"{name}.npy") for name in (*KINDS, MADE_BY)}


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray:
    """An array of a .npz. Its header must claim just the bytes that follow: NumPy takes the memory before it reads."""
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed, as metabin embed never writes it")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"the header of {name} does not fit what follows it")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_parquet(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        width = file.schema_arrow.field("feature").type.list_size
        if file.metadata.num_rows * width * 4 > DENSEST * path.stat().st_size:
            raise ValueError(f"it claims {file.metadata.num_rows} features of {width} numbers")
        table = file.read().combine_chunks()
    made_by = (table.schema.metadata or {})[MADE_BY.encode()].decode()
    texts = {name: table[name].to_pylist() for name in KINDS if name != "feature"}
    if any(isinstance(text, str) and len(text) > LONGEST for column in texts.values() for text in column):
        raise ValueError("a text in it is too long")
    columns = {name: np.array(column) for name, column in texts.items()}
    flat = table["feature"].combine_chunks().flatten().to_numpy()
    return {**columns, "feature": flat.reshape(len(table), width), MADE_BY: made_by}


def _need_pyarrow(path: Path) -> None:
    needs(f"{path}: Parquet", "parquet", "pyarrow", otherwise=", or write .npz")
