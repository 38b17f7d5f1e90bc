"""State dicts out of files, whole and broken, safe and hostile."""

import io
import os
import pickle
import sys
import time
import zipfile

import numpy as np
import pytest

from metabin_jax.models.weights import pickles, torch_files

safetensors = pytest.importorskip("safetensors.numpy", reason="writes the files to be read")

ARRAYS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.bias": np.array([1.5, -2.0], np.float16),
    "a.num_batches_tracked": np.array(3),
}


def need_torch():
    return pytest.importorskip("torch", reason="writes or reads the files")


def write_torch(path, content=None, **kw):
    torch = need_torch()
    if content is None:
        content = {name: torch.from_numpy(value.copy()) for name, value in ARRAYS.items()}
    torch.save(content, path, **kw)
    return path


def as_module(arrays):
    return {f"module.{name}": value for name, value in arrays.items()}


def tensors(path):
    return need_torch().load(write_torch(path), weights_only=True)


def is_the_same(arrays):
    return arrays.keys() == ARRAYS.keys() and all(
        type(arrays[name]) is np.ndarray
        and arrays[name].dtype == ARRAYS[name].dtype
        and np.array_equal(arrays[name], ARRAYS[name])
        for name in ARRAYS
    )


def test_a_file_of_either_kind_gives_the_arrays_themselves(tmp_path):
    safetensors.save_file(ARRAYS, tmp_path / "x.safetensors")
    assert is_the_same(torch_files.read(tmp_path / "x.safetensors"))
    assert is_the_same(torch_files.read(write_torch(tmp_path / "x.pth")))
    assert is_the_same(torch_files.read(write_torch(tmp_path / "x.tar", _use_new_zipfile_serialization=False)))
    assert is_the_same(torch_files.state_dict(ARRAYS, "x"))
    changed = ARRAYS | {"a.bias": ARRAYS["a.bias"] + 1}
    assert not is_the_same(torch_files.state_dict(changed, "x"))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_checkpoints_and_data_parallel(tmp_path, key):
    content = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    inner = tensors(tmp_path / "inner.pth")
    for state in (inner, as_module(inner)):
        assert is_the_same(torch_files.read(write_torch(tmp_path / "x.pth", content | {key: state})))
    assert is_the_same(torch_files.state_dict({key: as_module(ARRAYS)}, "x"))
    one_only = {"module.a": np.ones(1), "b": np.ones(1)}
    assert torch_files.state_dict(one_only, "x").keys() == one_only.keys()


def test_bfloat16(tmp_path):
    torch = need_torch()
    from safetensors.torch import save_file

    state = {"a": torch.tensor([1.0, -0.5, 3.140625], dtype=torch.bfloat16)}
    save_file(state, tmp_path / "x.safetensors")
    for path in (tmp_path / "x.safetensors", write_torch(tmp_path / "x.pth", state)):
        assert np.array_equal(torch_files.read(path)["a"].astype(np.float32), [1.0, -0.5, 3.140625])


class Bomb:
    """What unpickling would run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["plain", "zip", "old"])
def test_nothing_in_a_file_is_run(tmp_path, form):
    need_torch()
    marker, path = tmp_path / "ran", tmp_path / "x.pth"
    if form == "plain":
        path.write_bytes(pickle.dumps({"a": Bomb(marker)}, protocol=2))
    else:
        write_torch(path, {"a": Bomb(marker)}, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"x\.pth is damaged or holds more than tensors \(.* could run code") as error:
        torch_files.read(path)
    assert "weights_only" not in str(error.value)  # PyTorch's own words, which say how to run it
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))  # the control: the bomb is one
    assert marker.exists()


def compressed(path):
    with zipfile.ZipFile(write_torch(path)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(name, value + b"\0" * 10_000)


def one_bit(path):
    """In the values of a tensor, which any other value would do for."""
    whole = bytearray(write_torch(path).read_bytes())
    whole[whole.index(ARRAYS["a.weight"].tobytes()) + 5] ^= 1
    path.write_bytes(whole)


def unknown_type(path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0000")


def half(path):
    whole = write_torch(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def half_of_an_old_one(path):
    whole = write_torch(path, _use_new_zipfile_serialization=False).read_bytes()
    path.write_bytes(whole[: len(whole) - 20])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.pth", lambda path: path.mkdir(), "x.pth is a folder: give the file"),
        ("x.pth", lambda path: path.write_bytes(b""), "x.pth is empty"),
        ("x.pth", lambda path: path.write_bytes(b"hello world"), "x.pth is damaged or holds more than"),
        ("x.safetensors", lambda path: path.write_bytes(b"hello world"), "x.safetensors is damaged or not a safe"),
        ("x.pth", half, "x.pth is damaged"),
        ("x.pth", half_of_an_old_one, "x.pth is damaged"),
        ("x.pth", one_bit, "the checksum of"),
        ("x.safetensors", unknown_type, "x.safetensors is damaged or not a safe"),
        ("x.pth", compressed, "content is compressed"),
        ("x.pth", lambda path: write_torch(path, [1, 2]), "x.pth holds no state dict"),
        ("x.pth", lambda path: write_torch(path, {}), "x.pth holds no state dict"),
        ("x.pth", lambda path: write_torch(path, {"a": "b"}), "x.pth holds 'a', a str where a state dict has tensors"),
    ],
)
def test_a_file_that_is_none(tmp_path, name, write, message):
    if name.endswith(".pth"):
        need_torch()
    write(tmp_path / name)
    with pytest.raises(ValueError) as error:
        torch_files.read(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.pth does not exist"):
        torch_files.read(tmp_path / "x.pth")


def test_a_tensor_that_claims_to_be_huge_costs_nothing(tmp_path):
    torch = need_torch()
    write_torch(tmp_path / "x.pth", {"a": torch.ones(1, dtype=torch.bfloat16).expand(1 << 40)})
    assert torch_files.read(tmp_path / "x.pth")["a"].shape == (1 << 40,)


@pytest.mark.parametrize(("name", "package"), [("x.pth", "torch"), ("x.safetensors", "safetensors")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"^reading \S*{name} needs {package}: \S+ -m pip install .*\[{package}\]'"):
        torch_files.read(tmp_path / name)


def shared(value, levels: int, pair):
    """Holds `value` 2**levels times, in a few bytes a level."""
    for _ in range(levels):
        value = pair(value)
    return value


PAIRS = {
    "objects": lambda inner: {"a": inner, "b": inner},
    "lists": lambda inner: [inner, inner],
    "tuples": lambda inner: (inner, inner),
}


@pytest.mark.parametrize("form", ["zip", "old", "plain"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_small_file_that_stands_for_a_huge_tree_is_refused_at_once(tmp_path, form, pair):
    need_torch()
    path, content = tmp_path / "x.pth", {"model": {"a": shared({}, 30, PAIRS[pair])}}
    if form == "plain":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        write_torch(path, content, _use_new_zipfile_serialization=form == "zip")
    assert path.stat().st_size < 6000
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"x\.pth is damaged .*it is too large when written out"):
        torch_files.read(path)
    assert time.monotonic() - start < 5


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path):
    """Built by hand, as its own writer would hash it: {t: 1} with t = (t', t') thirty levels deep."""
    need_torch()
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\x02}(" + b")" + b"2\x86" * 30 + b"K\x01u.")
    with pytest.raises(ValueError, match="it is too large when written out"):
        torch_files.read(path)


def test_parts_that_come_late_count():
    """The outermost object is made first, and each holds the next one before that holds anything."""
    content = b"\x80\x02}q\x00" + b"".join(b"(K\x00}q%cK\x01h%cuh%c" % (level, level, level) for level in range(1, 31))
    with pytest.raises(ValueError, match="it is too large when written out"):
        pickles.check(io.BytesIO(content + b"."))
    pickles.check(io.BytesIO(content[: 5 + 4 * 13] + b"."))


def test_an_object_that_holds_itself_is_refused():
    content: dict = {}
    content["a"] = content
    with pytest.raises(ValueError, match="it holds itself"):
        pickles.check(io.BytesIO(pickle.dumps(content)))


def test_many_arrays_that_share_what_is_small_are_read(tmp_path):
    torch = need_torch()
    group = {"betas": (0.9, 0.999), "lr": 0.1}
    state = {f"layer{number}.weight": torch.ones(2) for number in range(2000)}
    write_torch(tmp_path / "x.pth", {"model": state, "optimizer": [group] * 1000})
    assert len(torch_files.read(tmp_path / "x.pth")) == 2000
