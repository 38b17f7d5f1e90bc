"""The benchmark of `metabin embed`, at a size at which only its output matters."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import embedding

TINY = ["--images=5", "--height=32", "--width=16", "--model=mobilenetv2_0.1", "--turns=2"]
WITHOUT_COMPILER = f"""
import torch
from experiments.benchmarks import embedding

def broken(net):
    raise RuntimeError("no compiler\\nof C++")

torch.compile = broken
embedding.main({TINY})
"""


def test_it_compares_those_that_can_run():
    """In a process of its own, because the workers of PyTorch live until its end."""
    for module in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(module, reason="a contestant needs it")
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    out = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True).stdout
    left_out, title, _, *table = out.splitlines()
    assert left_out == "PyTorch, torch.compile is left out: no compiler"
    assert title.startswith("5 images at 32 x 16, mobilenetv2_0.1, on ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows[2:]] == ["metabin embed", "PyTorch", "ONNX Runtime"]
    assert rows[2][2::2] == ["1.00"] * 3
    for row in rows[2:]:
        for cell in row[1::2]:
            median, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", cell).groups())
            assert 0 < low <= median <= high


def test_ours_alone_where_nothing_else_is_installed(capsys, monkeypatch):
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: None)
    embedding.main(TINY)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PyTorch is left out: torch not installed"
    assert lines[2] == "ONNX Runtime is left out: torch and onnx and onnxruntime not installed"
    assert [line.split(" | ")[0] for line in lines[-1:]] == ["| metabin embed"]


def test_a_ratio_is_our_rate_over_the_others():
    def turns(*rates):
        return [dict.fromkeys(embedding.PARTS, rate) for rate in rates]

    _, _, own, other = embedding.table({embedding.OURS: turns(30.0, 10.0, 20.0), "other": turns(8.0, 2.0, 4.0)})
    assert own == "| metabin embed" + 3 * " | 20.0 (10.0 to 30.0) | 1.00" + " |"
    assert other == "| other" + 3 * " | 4.0 (2.0 to 8.0) | 5.00" + " |"


def test_other_embeddings_are_refused():
    feature_ND = np.random.default_rng([0]).normal(size=(3, 4)).astype(np.float32)
    embedding.check(feature_ND, 2 * feature_ND + 1e-5, "the twin")
    for wrong_ND in (feature_ND[::-1], np.full_like(feature_ND, np.nan)):
        with pytest.raises(ValueError, match="embeddings of the twin differ from ours by"):
            embedding.check(feature_ND, wrong_ND, "the twin")
