"""What needs no compiler for CUDA; see test_plan_compiled for the rest."""

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metabin_jax import cli
from metabin_jax.plan import run as plan_module
from metabin_jax.plan.run import Needs, compile_step, problems, targets
from metabin_jax.training.config import metabin
from metabin_jax.training.sketch import sketch

pytestmark = pytest.mark.usefixtures("settings_of_jax")
CONFIG = f"--config={Path(__file__).parents[2] / 'configs' / 'metabin.py'}"

TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f64[4,8]{1,0})->f32[4,8]{1,0}}

%fused (p0: f64[4,8]) -> f32[4,8] {
  %p0 = f32[4,8]{1,0} parameter(0)
  ROOT %wide = f32[4,8]{1,0} convert(%p0), metadata={op_name="jit(step)/send(f64[4])/callback"}
}

ENTRY %main (image.1: f32[4,8]) -> f32[4,8] {
  %image.1 = f32[4,8]{1,0} parameter(0), metadata={op_name="raw.base.image"}
  ROOT %scaled = f32[4,8]{1,0} fusion(%image.1), kind=kLoop, calls=%fused
}
"""


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '  %wide.1 = f64[4,8]{1,0} convert(%scale), metadata={op_name="jit(step)/add"}',
            "float64 in wide.1 (jit(step)/add)",
        ),
        ('  %pair = (f32[4,8], c128[4]) custom-call(%scale), custom_call_target="x"', "float64 in pair"),
        ("  %out = token[] outfeed(%scale, %token)", "host in out"),
        ("  ROOT %out = (f32[4,8], u32[], token[]) send-start(%scale, %token), channel_id=1", "host in out"),
        ("  %out = f32[4,8]{1,0:S(5)} copy(%scale)", "host in out"),
        ('  %out = f32[4,8] custom-call(%scale), custom_call_target="xla_ffi_python_gpu_callback"', "host in out"),
    ],
)
def test_float64_and_the_host_are_problems(line, problem):
    assert problems(TEXT) == []
    (found,) = problems(TEXT.replace("  ROOT %scaled", f"{line}\n  ROOT %scaled"))
    assert problem in found


def test_a_real_program_that_computes_in_float64_has_problems():
    def step(x):
        return jnp.sin(x * np.float64(2)).astype(np.float32)

    with jax.enable_x64(True):
        wide = jax.jit(step).lower(jnp.ones(3)).compile().as_text()
    assert all(each.startswith("float64 in ") for each in problems(wide))
    assert any("jit(step)/sin" in each for each in problems(wide))
    assert problems(jax.jit(step).lower(jnp.ones(3)).compile().as_text()) == []


def test_a_real_program_that_calls_back_has_one_problem():
    def step(x, told):
        if told:
            x = jax.pure_callback(np.asarray, x, x)
        return jnp.sin(x)

    quiet, loud = (jax.jit(step, static_argnums=1).lower(jnp.ones(3), told).compile() for told in (False, True))
    assert problems(quiet.as_text()) == []
    (problem,) = problems(loud.as_text())
    assert problem.startswith("a transfer to or from the host in ") and "pure_callback" in problem


def test_the_step_is_traced_for_a_gpu(monkeypatch):
    """The form for the machine that compiles would be another program than the one that trains."""

    class Asked(Exception):
        pass

    def make_step(run, platform=""):
        raise Asked(platform)

    monkeypatch.setattr(plan_module, "make_step", make_step)
    monkeypatch.setattr(plan_module, "host_of", lambda target, devices: None)
    with pytest.raises(Asked, match="gpu"):
        compile_step(sketch(metabin(), num_ids=20), targets()["h100"])


def test_cards():
    """Facts of the data sheets: GB of memory, within 8 %, and the card's own name."""
    nominal = {"a100": 80, "a100_40gb": 40, "h100": 80, "h200": 141, "rtx4090": 24}
    assert list(targets()) == list(nominal)
    for name, card in targets().items():
        assert math.isclose(card.memory, nominal[name] * 1e9, rel_tol=0.08)
        assert name.split("_")[0].removeprefix("rtx").upper() in card.title


def refused(capsys, *arguments) -> str:
    assert cli.main(["plan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("metabin plan: ") and err.count("\n") == 1, err
    return err


def test_refusals(capsys, monkeypatch):
    assert "--target must be one of a100, a100_40gb, h100, h200, rtx4090; got 'h900'" in refused(
        capsys, CONFIG, "--target=h900"
    )
    assert "arguments are required: --target" in refused(capsys, CONFIG)
    assert "--identities: invalid int value: 'many'" in refused(capsys, CONFIG, "--target=h100", "--identities=many")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert "metabin plan needs jax-cuda12-plugin: " in refused(capsys, CONFIG, "--target=h100")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "batch takes 4 of each domain" in refused(capsys, CONFIG, "--target=h100", "--identities=10")
    assert "identities and domains, got 9 and 0" in refused(
        capsys, CONFIG, "--target=h100", "--identities=9", "--domains=0"
    )
    assert "config.loss.margin must be 0 or more" in refused(capsys, CONFIG, "--target=h100", "--config.loss.margin=-1")


def test_the_table(capsys, monkeypatch):
    """75 % of the H100's 79.11 GiB are 59.3 GiB."""
    peaks = iter((59, 60, 59, 59))

    def measure(run, target, devices=1):
        return Needs((next(peaks) - 1) * 2**30, 2**30, 61.6)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(plan_module, "measure", measure)
    assert cli.main(["plan", CONFIG, "--target=h100", "--devices=4", "--config.method=bn"]) == 0
    first, _, header, _, *rows = capsys.readouterr().out.splitlines()
    assert " on 4 x NVIDIA H100 80GB HBM3 with 79.11 GiB, of which the table shows one (JAX " in first
    assert header == "| variant | peak GiB | arguments | temporaries | fits | compiled in s |"
    assert rows == [
        "| bfloat16 | 59.00 | 58.00 | 1.00 | yes | 62 |",
        "| float32 | 60.00 | 59.00 | 1.00 | no | 62 |",
    ]
    assert cli.main(["plan", CONFIG, "--target=h100", "--config.method=bn"]) == 0
    assert "shows one" not in capsys.readouterr().out


def test_devices_that_cannot_share_a_batch_are_refused_before_anything_is_compiled(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(plan_module, "measure", lambda *_: pytest.fail("compiled"))
    for devices, problem in (
        ("0", "--devices must be 1 or more, got 0"),
        ("-2", "--devices must be 1 or more, got -2"),
        ("3", "the base batch of 80 images does not divide over 3 devices: change config.batch or use fewer devices"),
        ("5", "the meta-train batch of 48 images does not divide over 5 devices: change config.batch or use fewer"),
        ("two", "argument --devices: invalid int value: 'two'"),
    ):
        assert cli.main(["plan", CONFIG, "--target=h100", f"--devices={devices}"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"metabin plan: {problem}") and err.count("\n") == 1
