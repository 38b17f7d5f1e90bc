import importlib.util
import io
import json
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from some_features import MADE_BY, some_features

from metabin_jax.retrieval import features
from metabin_jax.runtime.errors import UserError


def same(first, second):
    return first.made_by == second.made_by and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        and getattr(first, name).dtype.kind == getattr(second, name).dtype.kind
        for name in ("path", "feature", "pid", "camid", "domain")
    )


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@pytest.mark.parametrize("count", [1, 5])
def test_what_is_written_is_read(tmp_path, suffix, count):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    path, written = tmp_path / f"f.{suffix}", some_features(count)
    features.write(path, written)
    assert same(features.read(path), written)
    assert not same(features.read(path), some_features(count, domain=np.array(["north"] * count)))
    assert [file.name for file in tmp_path.iterdir()] == [f"f.{suffix}"]


def test_numpy_reads_the_npz_without_us(tmp_path):
    written = some_features()
    features.write(tmp_path / "f.npz", written)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["camid", "domain", "feature", "made_by", "path", "pid"]
        np.testing.assert_array_equal(arrays["feature"], written.feature)
        assert arrays["path"][4] == "/bilder/größe/4.jpg"
        assert json.loads(str(arrays["made_by"])) == MADE_BY


def test_pyarrow_reads_the_parquet_without_us(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    import pyarrow.parquet as pq

    written = some_features()
    features.write(tmp_path / "f.parquet", written)
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.schema.field("feature").type == pa.list_(pa.float32(), 3)
    assert table["feature"].to_pylist() == written.feature.tolist()
    assert table["pid"].to_pylist() == ["Zoë", "", "7", "7", "7"]
    assert json.loads(table.schema.metadata[b"made_by"]) == MADE_BY


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_an_interrupted_write_leaves_the_file_before(tmp_path, suffix, monkeypatch):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        import pyarrow.parquet as library

        function = "write_table"
    else:
        library, function = np, "savez"
    path, before = tmp_path / f"f.{suffix}", some_features()
    features.write(path, before)

    def interrupted(*arguments, **_):
        next(one for one in arguments if hasattr(one, "write")).write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(library, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        features.write(path, some_features(4))
    with pytest.raises(KeyboardInterrupt):
        features.write(tmp_path / f"new.{suffix}", some_features(4))
    assert [file.name for file in tmp_path.iterdir()] == [f"f.{suffix}"]
    assert same(features.read(path), before)


@pytest.mark.parametrize("difference", [{"weights": "cd" * 32}, {"height": 64}, {"width": 32}])
def test_features_of_two_models_are_told_apart(difference):
    with pytest.raises(ValueError, match=r"a.npz is of another model than b.npz: /runs/a, step 9, 32 x 16 .* against"):
        features.check_same_model(MADE_BY, "a.npz", MADE_BY | difference, "b.npz")


def test_a_run_may_move():
    features.check_same_model(MADE_BY, "a.npz", MADE_BY | {"run": "/elsewhere"}, "b.npz")


def wrong_files(folder):
    good = some_features()
    columns = {name: getattr(good, name) for name in ("path", "feature", "pid", "camid", "domain")}
    made_by = json.dumps(MADE_BY)
    (folder / "text.npz").write_text("no zip")
    (folder / "empty.npz").write_bytes(b"")
    np.savez(folder / "other.npz", image=np.zeros(3))
    np.savez(folder / "short.npz", **columns | {"pid": good.pid[1:]}, made_by=made_by)
    np.savez(folder / "nan.npz", **columns | {"feature": good.feature * np.nan}, made_by=made_by)
    np.savez(folder / "flat.npz", **columns | {"feature": good.feature[:, 0]}, made_by=made_by)
    np.savez(folder / "nobody.npz", **columns, made_by="{}")
    np.savez(folder / "pickle.npz", **columns | {"pid": good.pid.astype(object)}, made_by=made_by)
    np.savez(folder / "long.npz", **columns | {"feature": 3 * good.feature}, made_by=made_by)
    np.savez(folder / "words.npz", **columns | {"camid": good.camid.astype(str)}, made_by=made_by)
    np.savez(folder / "none.npz", **{name: values[:0] for name, values in columns.items()}, made_by=made_by)
    (folder / "text.parquet").write_text("no table")
    if importlib.util.find_spec("pyarrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"path": ["a"]}), folder / "other.parquet")
        features.write(folder / "list.parquet", good)
        whole = (folder / "list.parquet").read_bytes()
        table = pq.read_table(folder / "list.parquet")
        as_lists = pa.array(good.feature.tolist())
        pq.write_table(table.set_column(4, "feature", as_lists), folder / "list.parquet")
        pq.write_table(table.set_column(2, "camid", pa.nulls(len(good), pa.int64())), folder / "nulls.parquet")
        flipped = bytearray(whole)
        flipped[whole.index(good.feature[2].tobytes())] ^= 1
        (folder / "bit.parquet").write_bytes(flipped)
    return sorted(folder.iterdir())


def test_files_of_another_kind_are_one_sentence(tmp_path):
    for path in wrong_files(tmp_path):
        if path.suffix == ".parquet" and not importlib.util.find_spec("pyarrow"):
            continue
        with pytest.raises(ValueError, match=f"{path} is not a feature file of metabin embed"):
            features.read(path)
    with pytest.raises(FileNotFoundError, match=r"no.npz does not exist: metabin embed writes one"):
        features.read(tmp_path / "no.npz")


def test_without_pyarrow_parquet_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "f.parquet").write_text("")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (features.check_output, features.read):
        with pytest.raises(ValueError, match=r"Parquet needs pyarrow: .*\[parquet\]'"):
            call(tmp_path / "f.parquet")
    assert features.check_output(tmp_path / "f.npz") == tmp_path / "f.npz"


def test_where_no_file_can_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"f.csv: the name of a feature file ends in .npz or .parquet"):
        features.check_output(tmp_path / "f.csv")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        features.check_output(tmp_path / "no" / "f.npz")
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(PermissionError, match="it is a folder"):
        features.check_output(tmp_path / "d.npz")


def claims(path, name: str, shape: tuple, descr: str) -> None:
    """Another header before the bytes of an array."""
    with zipfile.ZipFile(path) as archive:
        content = {member: archive.read(member) for member in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    content[f"{name}.npy"] = header.getvalue() + content[f"{name}.npy"][128:]
    with zipfile.ZipFile(path, "w") as archive:
        for member, value in content.items():
            archive.writestr(member, value)


@pytest.mark.parametrize(
    ("name", "shape", "descr"),
    [
        ("feature", (10**9, 4), "<f4"),
        ("feature", (10**18, 0), "<f4"),
        ("path", (10**12,), "<U4"),
        ("camid", (5,), "|V1000000000"),
        ("camid", (5,), "|O"),
        ("made_by", (10**15,), "<U1"),
    ],
)
def test_a_header_that_claims_more_than_follows_takes_no_memory(tmp_path, name, shape, descr):
    path = tmp_path / "f.npz"
    features.write(path, some_features())
    claims(path, "feature", (5, 3), "<f4")
    assert same(features.read(path), some_features())  # the control
    claims(path, name, shape, descr)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"f\.npz is not a feature file of metabin embed \(ValueError: the header of"):
        features.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_compressed_npz_could_be_of_any_size(tmp_path):
    good = some_features()
    columns = {name: getattr(good, name) for name in features.KINDS}
    np.savez_compressed(tmp_path / "f.npz", **columns, made_by=json.dumps(MADE_BY))
    with pytest.raises(UserError, match="it is compressed"):
        features.read(tmp_path / "f.npz")


def test_a_parquet_that_repeats_itself_could_be_of_any_size(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    import pyarrow.parquet as pq

    features.write(tmp_path / "f.parquet", some_features(1))
    table = pa.concat_tables([pq.read_table(tmp_path / "f.parquet")] * 200_000).combine_chunks()
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=10**6)
    with pytest.raises(UserError, match="it claims 200000 features of 3 numbers"):
        features.read(tmp_path / "f.parquet")
    features.write(tmp_path / "f.parquet", some_features(1, path=np.array(["x" * 20_000])))
    with pytest.raises(UserError, match="a text in it is too long"):
        features.read(tmp_path / "f.parquet")


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_no_damage_of_one_byte_is_a_traceback_or_another_number(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    path, expected = tmp_path / f"f.{suffix}", some_features()
    features.write(path, expected)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole))] if rng.random() < 0.2 else damaged)
        try:
            found = features.read(path)
        except UserError:
            continue
        assert np.array_equal(found.feature, expected.feature)
