"""Which file --config names, in a checkout and in an installed wheel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metabin_jax.cli.config_files import load_config

ROOT = Path(__file__).parents[2]
OWN = (
    "from metabin_jax.training.config import metabin\n\ndef get_config(preset='paper'):\n    config = metabin(preset)\n"
)


def own(file, seed):
    file.write_text(f"{OWN}    config.seed = {seed}\n    return config\n")


def test_a_name_is_of_the_package_and_a_path_of_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    own(tmp_path / "demo", 1)
    own(tmp_path / "demo.py", 2)
    own(tmp_path / "mine" / "demo", 3)
    found = {name: load_config(name).seed for name in ("demo", "demo.py", "./demo", "mine/demo", "~/demo.py")}
    assert found == {"demo": 0, "demo.py": 2, "./demo": 1, "mine/demo": 3, "~/demo.py": 2}
    assert load_config("demo").data.source == "synthetic" and load_config("./demo").data.source == "folder"
    presets = [load_config(name).preset for name in ("metabin", "metabin:official", "demo.py:official", "demo.py:")]
    assert presets == ["paper", "official", "official", "paper"]


def test_fields_are_set():
    config = load_config("demo", {"data.eval_domains": "mall,plaza", "seed": "3"})
    assert (config.data.eval_domains, config.seed) == (("mall", "plaza"), 3)
    assert load_config("demo").seed == 0
    with pytest.raises(ValueError, match="did you mean seed"):
        load_config("demo", {"sed": "3"})


def test_an_installed_wheel_has_the_configs(tmp_path):
    """From another folder, without the checkout; what is imported besides our package is of this environment."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}", ROOT], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--no-index", f"--target={site}", *wheels.iterdir()], check=True)
    script = (
        "import metabin_jax; from metabin_jax.cli.config_files import load_config; print(metabin_jax.__file__);"
        "print(*(load_config(name).data.source for name in ('demo', 'benchmark', 'metabin', 'folder', 'finetune')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        str(site / "metabin_jax" / "__init__.py"), "synthetic prepared folder folder folder",
    ]  # fmt: skip
