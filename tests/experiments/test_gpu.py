"""The benchmark of a GPU runs anywhere, keeps what it has, and says what failed."""

import json

import pytest

from experiments.benchmarks import gpu, gpu_checks


def test_every_kind_of_contestant_runs_on_a_cpu(tmp_path, capsys):
    """One that fails leaves the others; both files have all of them."""
    names = ["bfloat16, first order", "resident, 8 steps a dispatch", "embed, float32", "PyTorch, AMP, channels last"]
    gpu.main([f"--output={tmp_path}", "--cpu", "--seconds=200", "--turns=1", "--only", *names])
    found = json.loads((tmp_path / "gpu.json").read_text())["found"]
    assert list(found) == names
    for name in names:
        numbers = found[name]
        assert numbers.get("error", "").startswith("PyTorch is not") or (len(numbers["ms"]) == 4 and numbers["images"])
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("On cpu, jax ") and all(f"| {name} |" in page for name in names)
    assert page in capsys.readouterr().out


def test_a_contestant_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.CONTESTANTS, "broken", {"kind": "step", "dtype": "float13"})
    gpu.main([f"--output={tmp_path}", "--cpu", "--seconds=60", "--turns=1", "--only", "broken"])
    assert "float13" in json.loads((tmp_path / "gpu.json").read_text())["found"]["broken"]["error"]


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
    [("loop_reduce_fusion_3", "reductions"), ("cudnn_conv_fprop", "convolution"), ("nvjet_hsh", "matrix")],
)
def test_kernels_are_sorted_by_their_names(name, kind):
    from experiments.benchmarks.gpu_workers import kind_of

    assert kind_of(name).startswith(kind)
