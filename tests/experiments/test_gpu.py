"""The benchmark of a GPU runs anywhere, keeps what it has, and says what failed."""

import itertools
import json
import os
import signal
import time

import pytest

from experiments.benchmarks import gpu, gpu_checks, gpu_workers
from metabin_jax.data import resident


def test_every_kind_of_contestant_runs_on_a_cpu(tmp_path, capsys):
    """One that fails leaves the others; both files have all of them."""
    names = ["bfloat16, first order", "resident, 8 steps a dispatch", "embed, float32", "PyTorch, AMP, channels last"]
    gpu.main([f"--output={tmp_path}", "--cpu", "--seconds=200", "--turns=2", "--only", *names])
    found = json.loads((tmp_path / "gpu.json").read_text())["found"]
    assert list(found) == names
    for name in names:
        numbers = found[name]
        assert numbers.get("error", "").startswith("PyTorch is not") or (
            len(numbers["ms"]) == (2 if "dispatch" in name else 4) and numbers["images"]
        )
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("On cpu, jax ") and all(f"| {name} |" in page for name in names)
    assert page in capsys.readouterr().out


def test_a_contestant_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.CONTESTANTS, "broken", {"kind": "step", "dtype": "float13"})
    gpu.main([f"--output={tmp_path}", "--cpu", "--seconds=60", "--turns=1", "--only", "broken"])
    assert "float13" in json.loads((tmp_path / "gpu.json").read_text())["found"]["broken"]["error"]


def test_every_dispatch_has_as_many_steps_as_it_is_divided_by():
    run = gpu_workers.build_run({"tiny": True, "resident": True, "steps": 8})
    spans = itertools.islice(resident.cut(0, 10_000, 8, run.steps_per_epoch), 50)
    assert {len(span) for span in spans} == {8}


def test_a_contestant_that_hangs_is_waited_for_as_long_as_its_word_may_take(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PATIENCE, "time", 1)
    worker = gpu.Worker("hangs", {"kind": "checks"}, tmp_path / "log.txt")
    os.kill(worker.process.pid, signal.SIGSTOP)
    assert worker.ask("time", time.monotonic() + 60) == {"error": "no answer to time in 1 s"}
    assert worker.ask("time", time.monotonic() - 1) == {"error": "there was no time for time"}
    worker.end()
    assert worker.answer(10) == {"error": "it stopped with status -9"}


def test_an_error_after_the_first_times_is_in_the_table():
    found = {gpu.BASE: {"ms": [1.0], "images": 2}, "late": {"ms": [3.0], "images": 2, "error": "no answer to profile"}}
    assert "| late (later: no answer to profile) | 3.00 (3.00 to 3.00) | 3.00 |" in gpu.report(found, "a card")


def test_layers_and_losses_here_are_within_what_is_allowed():
    rows = []
    for what, found, allowed in gpu_checks.measured():
        rows.append(what)
        assert found <= allowed, what
        if what.startswith("distances"):  # the whole steps take long to compile
            break
    assert len(rows) == 12


def test_a_wrong_value_is_seen():
    """Half precision in place of float32."""
    import jax.numpy as jnp
    import numpy as np

    values = np.linspace(1, 2, 50)
    assert gpu_checks.apart(lambda x: jnp.sin(x), values) < 1e-6

    def worse(x):
        return jnp.sin(x.astype(jnp.float16)).astype(x.dtype) if x.dtype == jnp.float32 else jnp.sin(x)

    assert gpu_checks.apart(worse, values) > 1e-4


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("loop_reduce_fusion_3", "reductions"),
        ("cudnn_conv_fprop", "convolution"),
        ("nvjet_hsh", "matrix"),
        ("loop_convert_fusion_7", "elementwise"),
        ("input_convert_reduce_fusion", "reductions"),
        ("sm90_xmma_gemm_bf16bf16", "matrix"),
        ("sm80_xmma_fprop_implicit_gemm", "convolution"),
        ("MemcpyH2D", "copies"),
    ],
)
def test_kernels_are_sorted_by_their_names(name, kind):
    assert gpu_workers.kind_of(name).startswith(kind)
