"""Feature files, .npz or .parquet: `metabin embed` writes them, `metabin search` and `calibrate` read them."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabin_jax.runtime import files
from metabin_jax.runtime.errors import UserError, needs

SUFFIXES = (".npz", ".parquet")
MADE_BY = "made_by"
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


def check_same_model(first: dict, first_name: str, second: dict, second_name: str) -> None:
    """Raises UserError unless both are `made_by` one net at one image size. Other features cannot be compared."""
    if any(first[name] != second[name] for name in ("weights", "height", "width")):
        raise UserError(
            f"{first_name} is of another model than {second_name}: {describe(first)} against {describe(second)};"
            " embed both with one run."
        )


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
        made_by = json.loads(str(columns.pop(MADE_BY)))
        features = Features(**columns, made_by=made_by)
        describe(made_by)  # raises KeyError if something is missing
        if {len(values) for values in columns.values()} != {len(features) or 1}:
            raise ValueError("its columns differ in length, or are empty")
        if {name: values.dtype.kind for name, values in columns.items()} != KINDS or features.feature.ndim != 2:
            raise ValueError("its columns hold something else")
        if not np.allclose(np.linalg.norm(features.feature, axis=1), 1, atol=1e-3):
            raise ValueError("its features are not of length one")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a feature file of metabin embed ({error}).") from error
    return features


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in (*KINDS, MADE_BY)}


def _read_parquet(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, page_checksum_verification=True).combine_chunks()
    made_by = (table.schema.metadata or {})[MADE_BY.encode()].decode()
    columns = {name: np.array(table[name].to_pylist()) for name in KINDS if name != "feature"}
    width = table.schema.field("feature").type.list_size
    flat = table["feature"].combine_chunks().flatten().to_numpy()
    return {**columns, "feature": flat.reshape(len(table), width), MADE_BY: made_by}


def _need_pyarrow(path: Path) -> None:
    needs(f"{path}: Parquet", "parquet", "pyarrow", otherwise=", or write .npz")
