"""Programs are hand-made texts, whose bytes are worked out by hand; see test_plan_compiled for real ones."""

import importlib.util
import math
from pathlib import Path

import jax
import pytest

from metabin_jax import cli
from metabin_jax.models import reid
from metabin_jax.plan import sketch
from metabin_jax.plan.program import Buffer, Program, arrays, num_bytes
from metabin_jax.plan.run import batch_shapes, compile_step, targets, variants
from metabin_jax.training.config import metabin

pytestmark = pytest.mark.usefixtures("settings_of_jax")
CONFIG = f"--config={Path(__file__).parents[2] / 'configs' / 'metabin.py'}"


# A map of 4 x 2 x 2 x 8 bf16 (256 bytes), its two moments f32[4,8] (128 bytes each), and what comes of it.
TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[4,4,4,3]{3,2,1,0})->f32[4,8]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum.0 = f32[] add(%a, %b)
}

%fused_moments (p0: bf16[4,2,2,8]) -> (f32[4,8], f32[4,8]) {
  %p0 = bf16[4,2,2,8]{3,2,1,0} parameter(0)
  %wide = f32[4,2,2,8]{3,2,1,0} convert(%p0), metadata={op_name="jit(step)/jvp(ReID)/backbone/stem_norm/sub"}
  %zero = f32[] constant(0)
  %sum.1 = f32[4,8]{1,0} reduce(%wide, %zero), dimensions={1,2}, to_apply=%add
  ROOT %two = (f32[4,8]{1,0}, f32[4,8]{1,0}) tuple(%sum.1, %sum.1)
}

%fused_pixel (p1: bf16[4,2,2,8]) -> bf16[4,1,1,8] {
  %p1 = bf16[4,2,2,8]{3,2,1,0} parameter(0)
  ROOT %pixel.0 = bf16[4,1,1,8]{3,2,1,0} slice(%p1), slice={[0:4], [1:2], [1:2], [0:8]}
}

%fused_normalise (p2: bf16[4,2,2,8], p3: f32[4,8]) -> bf16[4,2,2,8] {
  %p2 = bf16[4,2,2,8]{3,2,1,0} parameter(0)
  %p3 = f32[4,8]{1,0} parameter(1)
  ROOT %scaled = bf16[4,2,2,8]{3,2,1,0} convert(%p2), metadata={op_name="jit(step)/jvp(ReID)/backbone/depthwise/mul"}
}

%fused_gradient (p4: bf16[4,2,2,8], p5: bf16[4,2,2,8]) -> f32[4,8] {
  %p4 = bf16[4,2,2,8]{3,2,1,0} parameter(0)
  %p5 = bf16[4,2,2,8]{3,2,1,0} parameter(1)
  %zero.1 = f32[] constant(0)
  ROOT %sum.2 = f32[4,8]{1,0} reduce(%p4, %zero.1), dimensions={1,2}, to_apply=%add
}

ENTRY %main (image.1: bf16[4,4,4,3], kernel.1: bf16[8,3,3,3]) -> f32[4,8] {
  %image.1 = bf16[4,4,4,3]{3,2,1,0} parameter(0), metadata={op_name="raw.base.image"}
  %kernel.1 = bf16[8,3,3,3]{3,2,1,0} parameter(1)
  %conv.1 = (bf16[4,2,2,8]{3,2,1,0}, u8[64]{0}) custom-call(%image.1, %kernel.1), window={size=3x3 stride=2x2}, \
custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp(ReID)/backbone/stem/conv"}
  %map = bf16[4,2,2,8]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %pixel = bf16[4,1,1,8]{3,2,1,0} fusion(%map), kind=kLoop, calls=%fused_pixel, \
metadata={op_name="jit(step)/jvp(ReID)/backbone/stem_norm/stem_norm.coefficients/slice"}
  %moments = (f32[4,8]{1,0}, /*index=1*/f32[4,8]{1,0}) fusion(%map), kind=kInput, calls=%fused_moments, \
metadata={op_name="jit(step)/jvp(ReID)/backbone/stem_norm/stem_norm.coefficients/reduce_sum"}
  %scale = f32[4,8]{1,0} get-tuple-element(%moments), index=0
  %normal = bf16[4,2,2,8]{3,2,1,0} fusion(%map, %scale), kind=kLoop, calls=%fused_normalise
  %seen = bf16[16,8]{1,0} bitcast(%normal)
  ROOT %grad = f32[4,8]{1,0} fusion(%map, %seen), kind=kInput, calls=%fused_gradient, \
metadata={op_name="jit(step)/transpose(jvp(ReID))/backbone/stem_norm/add_any"}
}
"""
LAYERS = {"backbone/stem_norm": [256]}


def with_line(before: str, line: str) -> Program:
    """The program with one more operation in its entry."""
    assert TEXT.count(before) == 1
    return Program.parse(TEXT.replace(before, f"{line}\n{before}"))


def test_sizes_of_types():
    assert arrays("(f32[2]{0}, /*index=1*/bf16[3,4]{1,0:S(5)}, pred[5], s4[3], f8e4m3fn[7], c64[], token[])") == [
        (8, "f32[2]"), (24, "bf16[3,4]"), (5, "pred[5]"), (2, "s4[3]"), (7, "f8e4m3fn[7]"), (8, "c64[]"),
    ]  # fmt: skip
    assert num_bytes("u8[80,256,128,3]{3,2,1,0}") == 80 * 256 * 128 * 3


def test_kernels_are_what_runs():
    program = Program.parse(TEXT)
    assert [op.name for op in program.kernels()] == ["conv.1", "pixel", "moments", "normal", "grad"]
    assert [op.name for op in program.library_convolutions()] == ["conv.1"]
    loop = "  %loop = f32[4,8]{1,0} while(%scale), condition=%cond, body=%body"
    body = "%body (s: f32[4,8]) -> f32[4,8] {\n  %s = f32[4,8] parameter(0)\n  ROOT %again = f32[4,8] copy(%s)\n}\n\n"
    text = TEXT.replace(
        "ENTRY", body + body.replace("body", "cond").replace("again", "test").replace("%s", "%q") + "ENTRY"
    )
    looping = Program.parse(text.replace("  %seen", f"{loop}\n  %seen"))
    assert [op.name for op in looping.kernels()][-2:] == ["test", "again"]


def test_what_kernels_move():
    program = Program.parse(TEXT)
    moved = {op.name: program.moved(op) for op in program.kernels()}
    conv = 4 * 4 * 4 * 3 * 2 + 8 * 27 * 2 + 256 + 64
    # pixel: of the map it takes a slice of 64 bytes and writes it.
    assert moved == {
        "conv.1": conv,
        "pixel": 128,
        "moments": 256 + 256,
        "normal": 256 + 128 + 256,
        "grad": 256 + 256 + 128,
    }


def test_norm_traffic_is_that_of_forward_kernels_on_the_map():
    """Slice, moments and normalisation, which is in the next layer's name; neither the gradient nor the convolution."""
    expected = 128 + 512 + 640
    assert Program.parse(TEXT).norm_traffic(LAYERS) == expected
    # A second pass for the moments costs a reading and a writing more.
    second = TEXT.split("  %moments = ")[1].split("\n")[0]
    assert with_line("  %scale =", f"  %again = {second}").norm_traffic(LAYERS) == expected + 512
    # A matrix product that normalises what it reads: its reading counts, its result does not.
    product = '  %product = bf16[16,99] custom-call(%map, %scale), custom_call_target="__cublas$gemm"'
    assert with_line("  %seen", product).norm_traffic(LAYERS) == expected + 256
    # What reads something else, or is of another layer, does not count.
    other = '  %other = f32[4,8]{1,0} copy(%scale), metadata={op_name="jit(step)/jvp(ReID)/backbone/stem_normal/add"}'
    assert with_line("  %seen", other).norm_traffic(LAYERS) == expected
    assert Program.parse(TEXT).norm_traffic({"backbone/other_norm": [256]}) == 0


def test_what_is_live_at_the_peak():
    """When `moments` are written: the map, the slice and both; when `normal` is: the map, one moment and itself."""
    live = Program.parse(TEXT).live_at_peak()
    assert [(b.size, b.type) for b in live] == [(256, "bf16[4,2,2,8]"), (256, "bf16[4,2,2,8]"), (128, "f32[4,8]")]
    assert live[0] == Buffer(256, "bf16[4,2,2,8]", "jit(step)/jvp(ReID)/backbone/stem/conv")
    # What is needed later is live there, too; what comes out has its place elsewhere.
    later = TEXT.replace("fusion(%map, %seen)", "fusion(%map, %seen, %pixel)")
    assert sum(b.size for b in Program.parse(later).live_at_peak()) == 256 + 256 + 128 + 64
    # A tuple with a parameter in it, of which one part is read at the end.
    packed = "  %packed = (bf16[4,4,4,3], bf16[4,2,2,8], bf16[4,1,1,8]) tuple(%image.1, %map, %pixel)\n"
    packed += "  %again = bf16[4,1,1,8] get-tuple-element(%packed), index=2\n  ROOT %grad"
    later = TEXT.replace("fusion(%map, %seen)", "fusion(%map, %seen, %again)").replace("  ROOT %grad", packed)
    assert sum(b.size for b in Program.parse(later).live_at_peak()) == 256 + 256 + 128 + 64
    end = "  ROOT %end = (f32[4,8]{1,0}, f32[4,8]{1,0}) tuple(%grad, %scale)\n}\n"
    returned = TEXT.replace("  ROOT %grad", "  %grad").removesuffix("}\n") + end
    assert sum(b.size for b in Program.parse(returned).live_at_peak()) == 256 + 256


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '  %wide.1 = f64[4,8]{1,0} convert(%scale), metadata={op_name="jit(step)/add"}',
            r"float64 in wide.1 \(jit\(step\)/add\)",
        ),
        ('  %pair = (f32[4,8], c128[4]) custom-call(%scale), custom_call_target="x"', "float64 in pair"),
        ("  %out = token[] outfeed(%scale, %token)", "host in out"),
        ("  %out = (f32[4,8], u32[], token[]) send-start(%scale, %token), channel_id=1", "host in out"),
        ("  %out = f32[4,8]{1,0:S(5)} copy(%scale)", "host in out"),
        ('  %out = f32[4,8] custom-call(%scale), custom_call_target="xla_ffi_python_gpu_callback"', "host in out"),
    ],
)
def test_float64_and_the_host_are_problems(line, problem):
    assert Program.parse(TEXT).problems() == []
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(with_line("  %seen", line).problems())


def test_float64_inside_of_a_fusion_is_one():
    text = TEXT.replace("%wide = f32[4,2,2,8]", "%wide = f64[4,2,2,8]")
    assert len(Program.parse(text).problems()) == 1


def test_a_text_of_something_else_is_refused():
    with pytest.raises(ValueError, match="the HLO text has no ENTRY"):
        Program.parse("HloModule jit_step\n")


def test_batches_of_the_presets():
    def sizes(config):
        return [None if raw is None else len(raw.pid) for raw in batch_shapes(sketch(config, num_ids=100))]

    assert [sizes(metabin(preset)) for preset in ("paper", "official")] == [[80, 48, 32]] * 2
    config = metabin()
    config.data.train_domains = ("a", "b", "c")
    assert sizes(config) == [48, 32, 16]
    config.method = "bn"
    assert sizes(config) == [48, None, None]


def test_the_classifier_has_the_identities():
    config = metabin()
    config.model.name = "tiny"
    params = jax.eval_shape(sketch(config, num_ids=77).init).params
    assert params["classifier"]["kernel"].shape == (reid.TINY["head"], 77)


VARIANTS = ["bfloat16, first order", "bfloat16, exact", "float32, first order", "float32, exact"]


def test_the_step_is_traced_for_a_gpu(monkeypatch):
    """And not for the machine that compiles: that would be another program than the one that trains."""

    class Asked(Exception):
        pass

    def make_step(run, platform=""):
        raise Asked(platform)

    monkeypatch.setattr("metabin_jax.plan.run.make_step", make_step)
    monkeypatch.setattr("metabin_jax.plan.run.host_of", lambda target, devices: None)
    with pytest.raises(Asked, match="gpu"):
        compile_step(sketch(metabin(), num_ids=20), targets()["h100"])


def test_variants():
    assert [name for name, _ in variants(metabin())] == VARIANTS
    assert [(c.model.dtype, c.meta.first_order) for _, c in variants(metabin())][1:3] == [
        ("bfloat16", False),
        ("float32", True),
    ]
    config = metabin()
    config.method = "bn"
    assert [name for name, _ in variants(config)] == ["bfloat16", "float32"]


def test_cards():
    """Facts of the data sheets: GB of memory, within 8 %, its GB/s, what joins the cards, and the card's own name."""
    nominal = {
        "a100": (80, 2039, "NVLink 3"), "a100_40gb": (40, 1555, "NVLink 3"), "h100": (80, 3350, "NVLink 4"),
        "h200": (141, 4800, "NVLink 4"), "rtx4090": (24, 1008, "PCIe"),
    }  # fmt: skip
    assert list(targets()) == list(nominal)
    for name, card in targets().items():
        memory, bandwidth, link = nominal[name]
        assert math.isclose(card.memory, memory * 1e9, rel_tol=0.08) and card.link == link
        assert math.isclose(card.bandwidth, bandwidth * 1e9, rel_tol=0.001)
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
        assert "install metabin_jax[cuda]; no GPU is needed" in refused(capsys, CONFIG, "--target=h100")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "batch takes 4 of each domain" in refused(capsys, CONFIG, "--target=h100", "--identities=10")
    assert "identities and domains, got 9 and 0" in refused(
        capsys, CONFIG, "--target=h100", "--identities=9", "--domains=0"
    )
    assert "config.loss.margin must be 0 or more" in refused(capsys, CONFIG, "--target=h100", "--config.loss.margin=-1")
