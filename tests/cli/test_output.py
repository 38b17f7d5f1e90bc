"""An output that exists is replaced only if asked for, and is refused before any work."""

import pytest

from metabin_jax import cli
from metabin_jax.cli.config_files import load_config
from metabin_jax.training import train

COMMANDS = {
    "embed": ["{dir}/nothing", "--model={dir}/run", "--output={dir}/f.npz"],
    "search": ["--query={dir}/q.npz", "--gallery={dir}/g.npz", "--output={dir}/r.csv"],
    "calibrate": ["{dir}/g.npz", "--output={dir}/t.json"],
    "export": ["--model={dir}/run", "--to=stablehlo", "--output={dir}/net"],
    "report": ["--model={dir}/run", "--output={dir}/page.html"],
}
DEFAULTS = {
    "embed": (["{dir}/nothing", "--model={dir}/run"], "features.npz"),
    "calibrate": (["{dir}/g.npz"], "threshold.json"),
    "report": (["--model={dir}/run"], "run/report.html"),
}


@pytest.fixture
def run_without_checkpoint(tmp_path, monkeypatch):
    train.describe_run(load_config("demo"), [], tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(capsys, command, arguments, folder):
    assert cli.main([command, *(argument.format(dir=folder) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"metabin {command}: ") and err.count("\n") == 1
    return err


def check(capsys, command, arguments, output, folder):
    assert " exists: " not in error_of(capsys, command, arguments, folder)  # fails later, for lack of inputs
    output.write_text("before")
    err = error_of(capsys, command, arguments, folder)
    assert err.endswith(f"{output.name} exists: give --overwrite to replace it, or another --output\n")
    assert " exists: " not in error_of(capsys, command, [*arguments, "--overwrite"], folder)
    assert output.read_text() == "before"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_exists(capsys, run_without_checkpoint, command):
    arguments = COMMANDS[command]
    output = run_without_checkpoint / arguments[-1].rsplit("/", 1)[1]
    check(capsys, command, arguments, output, run_without_checkpoint)


@pytest.mark.parametrize("command", DEFAULTS)
def test_a_default_output_that_exists(capsys, run_without_checkpoint, command):
    arguments, name = DEFAULTS[command]
    check(capsys, command, arguments, run_without_checkpoint / name, run_without_checkpoint)
