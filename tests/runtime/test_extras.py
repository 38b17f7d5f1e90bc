"""What runs without the extras, and what is said if one is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import draw_folder

from metabin_jax.runtime import errors
from metabin_jax.runtime.errors import UserError, needs

ROOT = Path(__file__).parents[2]
PIP = f"{sys.executable} -m pip install"

HIDDEN = (
    *("tensorflow_datasets", "importlib_resources", "h5py", "flatbuffers", "jinja2", "pyarrow", "torch", "safetensors"),
    *("onnx", "onnxruntime", "ai_edge_litert", "litert_converter", "matplotlib", "sklearn"),
)
WITHOUT = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({HIDDEN}))
import metabin_jax
from metabin_jax import cli
IN_EXTRAS = ("metabin_jax.data.sets.extraction", "metabin_jax.data.sets.reid.", "metabin_jax.export.onnx_graph")
for module in pkgutil.walk_packages(metabin_jax.__path__, "metabin_jax."):
    if not module.name.startswith(IN_EXTRAS) and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from metabin_jax.data import dataset
from metabin_jax.runtime.errors import UserError
data, cache = sys.argv[1:]
records = dataset.read("folder", data)
print(dataset.load_images("folder", records, (8, 8), cache).shape)
try:
    dataset.read("prepared", data)
except UserError as error:
    print(error)
assert cli.main(["doctor", data]) == 0
assert cli.main(["prepare", "folder", f"--manual_dir={{data}}"]) == 2
"""


def test_only_what_needs_an_extra_imports_it(tmp_path):
    data = draw_folder(tmp_path / "data", ("a", "b"), ids=2)
    command = [sys.executable, "-c", WITHOUT, str(data), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    shape, prepared, first, *_ = result.stdout.splitlines()
    assert shape == "(16, 8, 8, 3)"
    assert prepared == f"reading prepared sets needs tensorflow-datasets: {PIP} -e '{ROOT}[sets]'"
    assert first == f"folder of domains {data}"
    assert result.stderr == (
        "metabin prepare: preparing data sets needs tensorflow-datasets and importlib-resources and h5py: "
        f"{PIP} -e '{ROOT}[sets]'\n"
    )


def test_a_missing_extra_is_one_sentence():
    needs("counting", "numbers", "numpy", "json")
    with pytest.raises(UserError) as error:
        needs("counting", "numbers", "numpy", "no_such_module", otherwise=", or stop")
    assert str(error.value) == f"counting needs no-such-module: {PIP} -e '{ROOT}[numbers]', or stop"


def test_an_installed_package_names_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages/metabin_jax/runtime/errors.py"))
    with pytest.raises(UserError, match=r"pip install 'metabin_jax\[numbers\]'$"):
        needs("counting", "numbers", "no_such_module")
