"""Tables of results as files: .csv, .json or .parquet, by the suffix of the name."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metabin_jax.runtime.errors import UserError, needs
from metabin_jax.runtime.files import whole, write_text

SUFFIXES = (".csv", ".json", ".parquet")


def check_suffix(path: str | Path, more: Sequence[str] = ()) -> None:
    """Raises UserError unless the name has one of SUFFIXES or of `more`, and what writes it is installed."""
    suffix, known = Path(path).suffix.lower(), (*SUFFIXES, *more)
    if suffix not in known:
        raise UserError(f"{path}: the name of the output ends in {', '.join(known[:-1])} or {known[-1]}")
    if suffix == ".parquet":
        needs(f"{path}: Parquet", "parquet", "pyarrow", otherwise=", or write .csv")


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes the rows, whole or not at all. None is an empty cell, or null; .csv has six digits of a float."""
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: [row[number] for row in rows] for number, name in enumerate(header)}
        with whole(path) as temporary:
            pq.write_table(pa.table(columns), temporary)
    elif path.suffix.lower() == ".json":
        write_text(path, json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1) + "\n")
    else:
        text = io.StringIO()
        writer = csv.writer(text)  # with "\n" alone as its end of a line, csv would not quote "\r"
        writer.writerow(header)
        writer.writerows([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
        write_text(path, text.getvalue())
