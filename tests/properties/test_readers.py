"""Whatever stands in a file, a reader gives what was written or one sentence that names the file."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from some_features import MADE_BY, some_features

from metabin_jax.data.cache import load_images
from metabin_jax.data.manifest import read_csv
from metabin_jax.data.records import Record, read_folder
from metabin_jax.data.sets.splits import single_shot_splits
from metabin_jax.models.weights import torch_files
from metabin_jax.retrieval import features, search
from metabin_jax.retrieval.listing import list_images
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import parse_json
from metabin_jax.training.config import check, get, metabin, override

NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(0, 700), st.sampled_from([2**31, 2**32, 2**63, 10**20]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)
DAMAGE = st.lists(st.tuples(st.integers(0, 2**30), st.integers(0, 255)), min_size=1, max_size=4)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def damaged(content: bytes, damage, cut) -> bytes:
    changed = bytearray(content)
    for place, value in damage:
        changed[place % len(changed)] = value
    return bytes(changed[: cut % len(changed)] if cut else changed)


def sentence(path: Path, read):
    """What is read, or None after one sentence that names the file."""
    try:
        return read(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error).replace(str(path), "")
        return None


@given(st.lists(st.tuples(TEXTS, st.integers(-2, 10**20), TEXTS), min_size=1, max_size=6))
def test_a_manifest(folder, rows):
    (folder / "1.png").touch()
    text = io.StringIO()
    csv.writer(text).writerows([["path", "pid", "camid", "domain"], *(["1.png", *row] for row in rows)])
    (folder / "list.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    records = sentence(folder / "list.csv", read_csv)
    rows = [(pid.strip(), camid, domain.strip()) for pid, camid, domain in rows]
    if records is None:
        wrong = [row for row in rows if not row[0] or not row[2] or row[1] >= 10**18]
        assert wrong or all(row[0] == "-1" for row in rows)
        return
    kept = [row for row in rows if row[0] != "-1"]
    assert [r.domain for r in records] == [row[2] for row in kept]
    for record, (_, camid, domain) in zip(records, kept, strict=True):
        others = {str(c) for _, c, d in kept if d == domain and c != -1}  # -1 is unknown, -2 is a name
        numbers = {c: int(c) for c in others} if "-2" not in others else {c: n for n, c in enumerate(sorted(others), 1)}
        assert record.camid == numbers.get(str(camid), -1)
    for record, (pid, _, domain) in zip(records, kept, strict=True):
        assert (record.pid == 0) == (not pid.strip("0"))
        same = [
            r.pid
            for r, (p, _, d) in zip(records, kept, strict=True)
            if d == domain and (p == pid or record.pid == 0 == r.pid)
        ]
        assert {*same} == {record.pid} or not pid.strip("0")


@given(
    st.lists(
        TEXTS | st.from_regex(r"\A(-1|\d{1,24})_c\d{1,24}[^/\0]?", fullmatch=True), min_size=1, max_size=4, unique=True
    )
)
def test_file_names(folder, names):
    with tempfile.TemporaryDirectory(dir=folder) as root:
        (Path(root) / "yard").mkdir()
        written = []
        for name in names:
            name = f"{name}.png"
            assume("/" not in name and len(os.fsencode(name)) < 250)
            (Path(root) / "yard" / name).touch()
            written += [name] if not name.startswith(".") else []
        assume(written)
        try:
            records = read_folder(root)
        except UserError as error:
            assert str(root) in str(error)
            records = []
        for record in records:
            pid, _, rest = Path(record.path).name.partition("_c")
            assert int(pid) == record.pid and rest[:1].isdecimal()
        sentence(Path(root), list_images)


@given(
    st.one_of(
        VALUES, st.lists(st.dictionaries(st.sampled_from(["query", "gallery", "test"]), VALUES, max_size=3), max_size=3)
    )
)
def test_splits(folder, content):
    (folder / "splits.json").write_text(json.dumps(content))
    records = [Record(f"images/{p:04}00{n}.jpg", p, n, "ilids", "all") for p in range(1, 120) for n in range(1, 5)]
    sentence(folder / "splits.json", lambda path: single_shot_splits("ilids", records, path))


@given(VALUES)
def test_json(content):
    """Strictly: what Python writes and JSON does not have is refused."""
    text = json.dumps(content)
    try:
        found = parse_json(text)
    except ValueError:
        assert (
            any(word in text for word in ("NaN", "Infinity"))
            or any(len(word) > 18 for word in text.split())
            or "e+" in text
        )
        return
    assert found == content


FIELDS = ["threshold", "far_asked", "far", "far_interval", "tpr", "made_by"]


@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES),
    st.dictionaries(st.sampled_from(list(MADE_BY)), VALUES, max_size=2),
)
def test_thresholds(folder, changed, made_by):
    content = {"threshold": 0.5, "far_asked": 0.1, "far": 0.1, "far_interval": [0, 1], "tpr": 0.5}
    content |= {"made_by": MADE_BY | made_by}
    (folder / "t.json").write_text(json.dumps(content | changed))
    found = sentence(folder / "t.json", lambda path: search.read_threshold(str(path)))
    if found:
        assert -1.001 <= found.value <= 1.001
        found.words.encode(errors="surrogatepass")


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@given(damage=DAMAGE, cut=st.just(0) | st.integers(0, 2**20))
def test_feature_files(folder, suffix, damage, cut):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    path = folder / f"f.{suffix}"
    if not path.exists():
        features.write(path, some_features())
        (folder / "whole").write_bytes(path.read_bytes())
    path.write_bytes(damaged((folder / "whole").read_bytes(), damage, cut))
    found = sentence(path, features.read)
    if found:
        assert np.array_equal(found.feature, some_features().feature) and np.array_equal(found.pid, some_features().pid)


@given(damage=DAMAGE, cut=st.just(0) | st.integers(0, 2**20))
def test_weights(folder, damage, cut):
    torch = pytest.importorskip("torch", reason="writes and reads the files")
    path, whole = folder / "w.pth", folder / "whole.pth"
    if not whole.exists():
        torch.save({"a.weight": torch.arange(64.0), "b": {"c": [1, 2]}}, whole, _use_new_zipfile_serialization=False)
    path.write_bytes(damaged(whole.read_bytes(), damage, cut))
    sentence(path, torch_files.read)


@given(damage=DAMAGE, cut=st.just(0) | st.integers(0, 2**20))
def test_image_caches(folder, damage, cut):
    image = folder / "1.png"
    if not image.exists():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)).save(image)
    records, expected = [Record(str(image), 0, 0, "a", "all")] * 3, np.asarray(Image.open(image))
    load_images(records, (6, 4), folder / "cache")
    (file,) = (folder / "cache").iterdir()
    file.write_bytes(damaged(file.read_bytes(), damage, cut))
    assert (load_images(records, (6, 4), folder / "cache") == expected).all()


def every_field(config, prefix=""):
    for name, value in config.items():
        yield from every_field(value, f"{prefix}{name}.") if hasattr(value, "items") else [f"{prefix}{name}"]


@given(st.sampled_from([*every_field(metabin())]), st.text(max_size=12) | NUMBERS.map(str) | st.lists(NUMBERS).map(str))
@example("seed", str(2**63))
@example("optimizer.decay_epochs", "1e999")
def test_overrides(field, text):
    """A field has its type afterwards, and a config that is accepted says the same when it is read again."""
    config = metabin()
    config.data.path = "pictures"
    before = type(get(config, field))
    try:
        override(config, field, text)
        assert type(get(config, field)) is before
        check(config)
    except UserError as error:
        assert "config." in str(error) or "protocol" in str(error)
        return
    assert parse_json(config.to_json()) == json.loads(config.to_json())
