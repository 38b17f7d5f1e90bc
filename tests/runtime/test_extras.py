"""What runs without the extras, and what is said if one is missing."""

import subprocess
import sys

import pytest
from tiny_run import draw_folder

from metabin_jax.runtime.errors import UserError, needs

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
    assert prepared == "reading prepared sets needs tensorflow-datasets: pip install 'metabin_jax[sets]'"
    assert first == f"folder of domains {data}"
    assert result.stderr == (
        "metabin prepare: preparing data sets needs tensorflow-datasets and importlib-resources and h5py: "
        "pip install 'metabin_jax[sets]'\n"
    )


def test_a_missing_extra_is_one_sentence():
    needs("counting", "numbers", "numpy", "json")
    with pytest.raises(
        UserError, match=r"^counting needs no-such-module: pip install 'metabin_jax\[numbers\]', or stop$"
    ):
        needs("counting", "numbers", "numpy", "no_such_module", otherwise=", or stop")
