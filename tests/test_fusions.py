"""A training step with and without XLA's YNNPACK fusions, some of which jaxlib 0.10.2 gets wrong (jax issue 39103)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WITHOUT = "--xla_cpu_experimental_ynn_fusion_type="


def step(file: Path, flags: str) -> dict[str, np.ndarray]:
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    subprocess.run([sys.executable, HERE / "fused_step.py", file], env=environment, check=True, timeout=300)
    with np.load(file) as arrays:
        return dict(arrays)


def far_apart(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> list[str]:
    """The arrays that differ by more than rounding, seen from their largest value."""
    assert first.keys() == second.keys()
    return [
        name
        for name in first
        if not np.allclose(first[name], second[name], rtol=0, atol=1e-4 * np.abs(second[name]).max(initial=1e-6))
    ]


def test_the_fusions_change_rounding_only(tmp_path):
    fused, plain = step(tmp_path / "fused.npz", ""), step(tmp_path / "plain.npz", WITHOUT)
    assert far_apart(fused, plain) == []
    assert any(fused[name].tobytes() != plain[name].tobytes() for name in fused)  # the flag does something
    (norm,) = [name for name in fused if "trace" in name and "bn_scale" in name]
    assert far_apart(fused | {norm: fused[norm] * 1.001}, plain) == [norm]
