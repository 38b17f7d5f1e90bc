"""`metabin export`: what it writes, and what it refuses."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_export import net, unit
from tiny_run import draw_folder, tiny_config

from metabin_jax import cli
from metabin_jax.algorithm import TrainState
from metabin_jax.evaluation import embed
from metabin_jax.export import FORMATS, formats, run
from metabin_jax.training import train
from metabin_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a training leaves that export needs, of a net that computes in bfloat16."""
    root = tmp_path_factory.mktemp("export")
    config = tiny_config(draw_folder(root / "data", domains=("west", "east")))
    config.model.dtype = "bfloat16"
    train.describe_run(config, [], root / "run")
    _, variables, _ = net()
    with Checkpoints(root / "run", scored=False) as checkpoints:
        checkpoints.save(TrainState(step=jnp.asarray(7, jnp.int32), opt_state=(), **variables))
    return root / "run"


def command(capsys, workdir, output, to, *more):
    status = cli.main(["export", f"--model={workdir}", f"--to={to}", f"--output={output}", *more])
    return status, *capsys.readouterr()


def test_export_by_command(capsys, tmp_path, workdir):
    status, out, _ = command(capsys, workdir, tmp_path / "net.bin", "stablehlo")
    assert status == 0
    first, last = out.splitlines()
    assert first.startswith("west: 16 images, largest difference from JAX ")
    assert float(first.split("JAX ")[1].split(",")[0]) < 2e-6
    assert first.endswith("(+0.00)")
    assert last == f"step 7 of {workdir} is in {tmp_path / 'net.bin'}"
    exported = jax.export.deserialize(bytearray((tmp_path / "net.bin").read_bytes()))
    model, variables, _ = net()
    image_NHWC = np.random.default_rng([3]).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(exported.call(image_NHWC), unit(embed(model, variables, image_NHWC)), atol=2e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["net.bin"]

    config = (workdir / "config.json").read_text()
    assert json.loads(config)["model"]["dtype"] == "bfloat16"
    status, out, _ = command(
        capsys, workdir, tmp_path / "net.bin", "stablehlo", "--overwrite", "--config.data.eval_domains="
    )
    assert status == 0
    assert out.startswith("underpass (synthetic): 80 images, ")
    assert (workdir / "config.json").read_text() == config


def test_a_run_whose_pictures_are_gone_is_exported(capsys, tmp_path, workdir):
    gone = f"--config.data.path={tmp_path}/gone"
    status, out, err = command(capsys, workdir, tmp_path / "net.bin", "stablehlo", gone)
    assert (status, out.split(":")[0]) == (0, "underpass (synthetic)")
    assert "gone does not exist" in err and err.endswith("so the file is compared with JAX on synthetic people\n")


def test_a_changed_weight_is_found_and_leaves_no_file(capsys, tmp_path, workdir, monkeypatch):
    def wrong(model, variables, image_NHWC):
        changed = jax.tree.map(lambda leaf: leaf, variables)
        changed["rho"]["backbone"]["head_norm"]["rho"] = changed["rho"]["backbone"]["head_norm"]["rho"] * 0.99
        return formats.write_stablehlo(model, changed, image_NHWC)

    monkeypatch.setitem(FORMATS, "stablehlo", FORMATS["stablehlo"]._replace(write=wrong))
    (tmp_path / "old").write_text("of an earlier export")
    for name in ("new", "old"):
        status, out, err = command(capsys, workdir, tmp_path / name, "stablehlo", "--overwrite")
        assert (status, out) == (2, "")
        assert err.startswith("metabin export: the stablehlo file differs from JAX by ")
        assert err.endswith(f"more than 1e-04: {tmp_path / name} was not written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "of an earlier export"


def test_an_embedding_that_is_no_number_is_a_difference(capsys, tmp_path, workdir, monkeypatch):
    def broken(path):
        return lambda image_NHWC: np.full((len(image_NHWC), 32), np.nan, np.float32)

    monkeypatch.setattr(run, "_mean_ap", lambda embedding_ND, split: 0.0)
    monkeypatch.setitem(FORMATS, "stablehlo", FORMATS["stablehlo"]._replace(load=broken))
    assert "differs from JAX by nan" in command(capsys, workdir, tmp_path / "net", "stablehlo")[2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"to": "coreml"}, "--to must be one of stablehlo, onnx, tflite, tflite-int8; got 'coreml'"),
        ({"to": ""}, "argument --to: must not be empty"),
        ({"workdir": "{dir}/no"}, "no does not exist: name a workdir of metabin train or a file of weights"),
        ({"workdir": "{dir}/untrained"}, "holds no checkpoint: train there first"),
        ({"output": "{dir}/no/net"}, "{dir}/no/net cannot be written: there is no folder {dir}/no."),
        ({"output": "{dir}/untrained"}, "untrained cannot be written: it is a folder"),
        ({"output": "{dir}/untrained/config.json/net"}, "net cannot be written: there is no folder"),
        ({"more": "--config.method=bn"}, "config.method was fixed by the training"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence_and_no_file(capsys, tmp_path, workdir, changed, message):
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "config.json").write_text((workdir / "config.json").read_text())
    before = sorted(tmp_path.rglob("*"))
    given = {"workdir": workdir, "output": tmp_path / "net", "to": "stablehlo", "more": "--config.eval.policy=ignore"}
    given |= {name: value.format(dir=tmp_path) for name, value in changed.items()}
    status, out, err = command(capsys, *(given[name] for name in ("workdir", "output", "to", "more")))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("metabin export: ")
    assert message.format(dir=tmp_path) in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", list(FORMATS))
def test_a_missing_package_is_named_with_what_installs_it(capsys, tmp_path, workdir, monkeypatch, to):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, out, err = command(capsys, workdir, tmp_path / "net", to)
    assert (status, out, err.count("\n")) == (2, "", 1)
    needs, extra = " and ".join(FORMATS[to].needs).replace("_", "-"), "tflite" if "tflite" in to else "export"
    assert err.startswith(f"metabin export: --to={to} needs {needs}: ") and f"[{extra}]'" in err
    assert not list(tmp_path.iterdir())


def test_help_names_every_format(capsys):
    assert cli.main(["export", "--help"]) == 0
    out, _ = capsys.readouterr()
    assert all(f"\n  {to} " in out for to in FORMATS)
    assert max(map(len, out.splitlines())) <= 120
