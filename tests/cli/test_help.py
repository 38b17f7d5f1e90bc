"""What the commands say about themselves, and that it takes no time."""

import subprocess
import sys
import tomllib

import pytest
from test_cli import CONFIGS, run

from metabin_jax.cli.tree import COMMANDS
from metabin_jax.data.sets.catalogue import SETS


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    assert all(f"\n    {command.run.__name__}" in out for command in COMMANDS)


FIELDS = ("--config.FIELD VALUE", "--config.data.eval_domains=north,south")
OUTPUT = ("--output FILE", "--overwrite")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", ("--config NAME|FILE[:PRESET]", "--workdir DIR", "--distributed", *FIELDS)),
        ("evaluate", ("--model RUN", "--distributed", *FIELDS)),
        ("report", ("--model RUN", *OUTPUT, *FIELDS)),
        ("export", ("--model RUN", "--to FORMAT", *OUTPUT, *FIELDS)),
        ("prepare", ("NAME", "--manual_dir DIR", "--data_dir DIR", "--allow_incomplete", *SETS)),
        ("embed", ("IMAGES", "--model RUN", *OUTPUT, "exit status is then 1")),
        ("search", ("--query IMAGES", "--gallery IMAGES", "--model RUN", "-k K", "--threshold FILE|NUMBER", *OUTPUT)),
        ("calibrate", ("IMAGES", "--model RUN", "--far RATE", *OUTPUT)),
        ("doctor", ("PATH",)),
        ("plan", ("--config NAME|FILE[:PRESET]", "--target CARD", "--devices N", *FIELDS)),
    ],
)
def test_help_of_a_command(capsys, command, options):
    status, out, err = run(capsys, command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: metabin {command} ")
    for option in options:
        assert option in out
    assert f"\n  metabin {command} " in out  # an example
    assert max(map(len, out.splitlines())) <= 120


def test_every_config_of_the_help_exists(capsys):
    names = ("metabin", "benchmark", "folder", "people", "finetune", "demo", "networks")
    _, out, _ = run(capsys, "train", "--help")
    for name in names:
        assert f"\n  {name}  " in out
        assert (CONFIGS / f"{name}.py").is_file()
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(names)


def test_the_version(capsys):
    version = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["project"]["version"]
    assert run(capsys, "--version") == (0, f"metabin {version}\n", "")


LATE = """
import sys
import tomllib
from metabin_jax.cli import main
assert main(["--help"]) == main(["train", "--help"]) == 0
assert not {"jax", "numpy", "ml_collections"} & set(sys.modules), "late imports"
main(["train", "--config=demo", "--workdir=/dev/null"])
assert "jax" in sys.modules
"""


def test_help_imports_no_jax():
    """The last lines show that a command does."""
    result = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
