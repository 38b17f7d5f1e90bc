"""What devices send each other, in a program by hand whose bytes are worked out by hand (real: test_plan_compiled)."""

import importlib.util
import math
from pathlib import Path

import pytest

from metabin_jax import cli
from metabin_jax.plan import run as plan_module
from metabin_jax.plan.communication import LINKS, Collective, Work, explain, find_collectives, wait
from metabin_jax.plan.program import Program
from metabin_jax.plan.run import Needs

pytestmark = pytest.mark.usefixtures("settings_of_jax")
CONFIG = f"--config={Path(__file__).parents[2] / 'configs' / 'metabin.py'}"

# Of four devices. %p and %q have 64 bytes on each.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (w: f32[16]) -> f32[4] {
  %w = f32[16]{0} parameter(0)
  ROOT %scattered.1 = f32[4]{0} reduce-scatter(%w), channel_id=8, dimensions={0}, to_apply=%add
}

%body (s: f32[16]) -> f32[16] {
  %s = f32[16]{0} parameter(0)
  ROOT %again = f32[16]{0} all-reduce(%s), channel_id=7, to_apply=%add
}

%condition (t: f32[16]) -> pred[] {
  %t = f32[16]{0} parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (p: f32[16], q: bf16[8,4]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  %q = bf16[8,4]{1,0} parameter(1)
  %start = f32[16]{0} all-reduce-start(%p), channel_id=1, to_apply=%add
  %done = f32[16]{0} all-reduce-done(%start)
  %both = (f32[16]{0}, bf16[8,4]{1,0}) all-reduce(%done, %q), channel_id=2, to_apply=%add
  %gather-start = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%q), channel_id=3, dimensions={0}
  %gathered = bf16[32,4]{1,0} all-gather-done(%gather-start)
  %scattered = f32[4]{0} reduce-scatter(%done), channel_id=4, dimensions={0}, to_apply=%add
  %next-start = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%done), channel_id=5
  %next = f32[16]{0} collective-permute-done(%next-start)
  %swapped = f32[16]{0} all-to-all(%next), channel_id=6, dimensions={0}
  %loop = f32[16]{0} while(%swapped), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %async = ((f32[16]{0}), f32[4]{0}) async-start(%loop), calls=%wrapped
  %joined = f32[4]{0} async-done(%async)
  ROOT %end = f32[16]{0} copy(%loop)
}
"""


def of_text(text: str) -> dict[str, list[tuple[int, int]]]:
    """Kind -> size and times of each."""
    found: dict[str, list[tuple[int, int]]] = {}
    for each in find_collectives(Program.parse(text), devices=4):
        found.setdefault(each.kind, []).append((each.size, each.times))
    return found


def test_every_collective_is_found_once_with_the_bytes_of_the_whole():
    """A gather's are those of all devices; pairs count once, and what is in a loop as often as it runs."""
    found = of_text(TEXT)
    assert found == {
        "all-reduce": [(64, 1), (128, 1), (64, 5)],
        "all-gather": [(256, 1)],
        "reduce-scatter": [(64, 1), (64, 1)],
        "collective-permute": [(64, 1)],
        "all-to-all": [(64, 1)],
    }
    unknown = of_text(TEXT.replace("known_trip_count", "known_init_step"))
    assert unknown["all-reduce"] == [(64, 1), (128, 1), (64, 1)]
    assert of_text(TEXT.replace("all-reduce", "copy"))["all-gather"] == [(256, 1)]
    assert "all-reduce" not in of_text(TEXT.replace("all-reduce", "copy"))


def test_collectives_are_no_kernels_nor_are_their_sums():
    assert [op.name for op in Program.parse(TEXT).kernels()] == ["end"]


def test_a_pair_writes_one_buffer():
    body = TEXT[TEXT.index("ENTRY") :].splitlines()[:5]
    text = "\n".join([*body, "  ROOT %end = f32[2]{0} slice(%done)", "}"])
    assert [buffer.size for buffer in Program.parse(text).live_at_peak()] == [64]


@pytest.mark.parametrize(
    ("kind", "sent", "steps"),
    [
        ("all-reduce", 2 * 3 / 4 * 800, 6),
        ("all-gather", 3 / 4 * 800, 3),
        ("reduce-scatter", 3 / 4 * 800, 3),
        ("all-to-all", 3 / 4 * 800, 3),
        ("collective-permute", 800, 1),
    ],
)
def test_what_a_device_sends_around_a_ring_of_four(kind, sent, steps):
    assert Collective(kind, 800, 1).sent(4) == sent
    assert Collective(kind, 400, 3).sent(4) == 1.5 * sent
    assert math.isclose(wait(kind, 4, LINKS["NVLink 4"]), 6.6e-6 + steps * 0.6e-6)
    assert math.isclose(wait(kind, 4, LINKS["PCIe"]), 6.6e-6 + steps * 1e-6)


ALONE = Work(moved=8_000_000_000, kernels=1000)  # 4 ms at 2 TB/s, and 1 ms
SHARED = Work(2_500_000_000, 1200, [Collective("all-reduce", 2_400_000, 50), Collective("all-reduce", 40_000_000, 3)])


def test_the_arithmetic():
    """240 MB in 53 all-reduces: 1.5 times that is sent, which takes 1 ms; 53 times 10.2 us are 0.54 ms."""
    assert list(explain(ALONE, SHARED, 4, 2e12, "NVLink 4")) == [
        "in all 53 all-reduce of 240.00 MB",
        "1 device: 8.00 GB / 2,000 GB/s + 1,000 kernels x 1 us = 4.00 + 1.00 = 5.00 ms",
        "each of 4: 2.50 GB / 2,000 GB/s + 1,200 kernels x 1 us = 1.25 + 1.20 = 2.45 ms",
        "NVLink 4: 360.00 MB sent / 360 GB/s + 53 x 10.2 us = 1.00 + 0.54 = 1.54 ms",
        # 5 / 3.99, a fourth of that, and 5 / (4 + 1.2 + 1.54)
        "the same batch: 2.45 + 1.54 = 3.99 ms, which is 1.25 times as fast as 1 device: efficiency 31%",
        "a batch 4 times as large: 4.00 + 1.20 + 1.54 = 6.74 ms: efficiency 74%",
    ]
    # Thirty times the time for the bytes, and 53 times 12.6 us.
    *_, link, _, _ = explain(ALONE, SHARED, 4, 2e12, "PCIe")
    assert link == "PCIe: 360.00 MB sent / 12 GB/s + 53 x 12.6 us = 30.00 + 0.67 = 30.67 ms"


def test_the_command_compares_with_one_device(capsys, monkeypatch):
    def measure(run, target, devices=1):
        return Needs(2**30, 2**30, {1: ALONE, 4: SHARED}[devices], 10**9, 10**9, 7, [])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(plan_module, "measure", measure)
    assert cli.main(["plan", CONFIG, "--target=h100", "--devices=4", "--config.method=bn"]) == 0
    first, _, _, _, row, *rest = capsys.readouterr().out.splitlines()
    assert " on 4 x NVIDIA H100 80GB HBM3 with 79.11 GiB, of which the table shows one (JAX " in first
    assert row == "| bfloat16 | 2.00 | 1.00 | 1.00 | yes | 2.5 | 1.00 | 1.00x | 1,200 | 7 |"
    assert rest[6:9] == [
        "A step's communication, and what it leaves of the speed:",
        "- bfloat16",
        "  - in all 53 all-reduce of 240.00 MB",
    ]
    assert rest[-1].startswith("  - a batch 4 times as large: ")
    assert cli.main(["plan", CONFIG, "--target=h100", "--config.method=bn"]) == 0
    assert "device" not in capsys.readouterr().out


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
