"""Commands that people wait for import nothing that takes seconds and that they do not need."""

import importlib
import subprocess
import sys

from metabin_jax import cli


def test_search_needs_neither_torch_nor_matlab_files():
    script = (
        "import sys, metabin_jax.training.trained, metabin_jax.retrieval.encoder, metabin_jax.report.search_page;"
        "heavy = ('torch', 'scipy', 'matplotlib', 'tensorboardX', 'pandas');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_ctrl_c_is_one_sentence(capsys, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("metabin_jax.report.doctor"), "examine", interrupted)
    assert cli.main(["doctor", "pictures"]) == 130
    assert capsys.readouterr().err == "metabin doctor: interrupted\n"
