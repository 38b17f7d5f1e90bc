import csv
import json

import pytest

from metabin_jax.retrieval import tables
from metabin_jax.runtime.errors import UserError

HEADER = ("path", "camid", "similarity")
ROWS = [("/größe, ü.jpg", 3, 0.123456789), ('"quoted"\r', None, -1.0)]


def test_every_kind_holds_the_same(tmp_path):
    for suffix in tables.SUFFIXES:
        tables.check_suffix(tmp_path / f"a{suffix}")
        tables.write(tmp_path / f"a{suffix}", HEADER, ROWS)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            list(HEADER), ["/größe, ü.jpg", "3", "0.123457"], ['"quoted"\r', "", "-1.000000"]
        ]  # fmt: skip
    expected = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == expected
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "a.parquet"]


@pytest.mark.parametrize("name", ["a", "a.txt", "a.csv.gz", "csv"])
def test_another_suffix_is_refused(name):
    with pytest.raises(UserError, match=r"the name of the output ends in \.csv, \.json, \.parquet or \.html"):
        tables.check_suffix(name, [".html"])
