"""Training from a file of weights: --config.init."""

import json

import jax
import numpy as np
import pytest
from tiny_run import tiny_config

from experiments import pretrained_retrieval
from metabin_jax.cli import main
from metabin_jax.training import build, train

safetensors = pytest.importorskip("safetensors.numpy", reason="writes the file to start from")


def names_of_torchreid(rng):
    """A file that fits the net `tiny`: stem, blocks of stages 2 to 4, head; as numpy arrays."""
    arrays = {}

    def unit(convolution, norm, *shape):
        arrays[f"{convolution}.weight"] = rng.normal(size=shape)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{norm}.{leaf}"] = rng.uniform(0.5, 1.5, shape[0])

    unit("conv1.conv", "conv1.bn", 8, 3, 3, 3)
    for block, inputs, hidden, outputs in (
        ("2.0", 8, 8, 8),
        ("3.0", 8, 16, 12),
        ("3.1", 12, 24, 12),
        ("4.0", 12, 24, 16),
    ):
        unit(f"conv{block}.conv1.conv", f"conv{block}.conv1.bn", hidden, inputs, 1, 1)
        unit(f"conv{block}.dwconv2.conv", f"conv{block}.dwconv2.bn", hidden, 1, 3, 3)
        unit(f"conv{block}.conv3.0", f"conv{block}.conv3.1", outputs, hidden, 1, 1)
    unit("conv9.conv", "conv9.bn", 32, 16, 1, 1)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


@pytest.fixture
def weights(tmp_path):
    arrays = names_of_torchreid(np.random.default_rng(0))
    safetensors.save_file(arrays, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", arrays


@pytest.fixture
def config(folder, weights):
    config = tiny_config(folder)
    config.data.train_domains = ("east", "north", "south")
    config.data.eval_domains = ()
    config.epochs = 1
    config.init = str(weights[0])
    return config


@pytest.fixture
def first_states(monkeypatch):
    """The states that trainings start from; their steps only count."""
    states = []

    def make_step(run):
        states.append(None)

        def step(state, batch, key):
            states[-1] = jax.device_get(state) if states[-1] is None else states[-1]
            return state.replace(step=state.step + 1), {}

        return step

    monkeypatch.setattr(train, "make_step", make_step)
    monkeypatch.setattr(train, "compile_ahead", lambda step, *args: step)
    return states


def test_a_run_starts_from_the_file_and_resumes_without_it(config, weights, first_states, tmp_path, capsys):
    path, arrays = weights
    train.train(config, tmp_path / "w")
    assert json.loads((tmp_path / "w" / "config.json").read_text())["init"] == str(path)
    assert (
        f"weights.safetensors: {len(arrays)} arrays loaded from a MobileNetV2 of torchreid" in capsys.readouterr().err
    )
    params, stats = first_states[0].params["backbone"], first_states[0].batch_stats["backbone"]
    depthwise = arrays["conv3.1.dwconv2.conv.weight"].transpose(2, 3, 1, 0)
    assert np.array_equal(params["stage3_block1"]["depthwise"]["kernel"], depthwise)
    assert np.array_equal(stats["head_norm"]["var"], arrays["conv9.bn.running_var"])
    fresh = build.build(build.resolve(config)).init()
    assert np.array_equal(first_states[0].params["classifier"]["kernel"], fresh.params["classifier"]["kernel"])
    assert not np.array_equal(fresh.params["backbone"]["stage3_block1"]["depthwise"]["kernel"], depthwise)

    path.unlink()
    config.epochs = 2
    train.train(config, tmp_path / "w")
    assert first_states[1].step == 3
    assert np.array_equal(first_states[1].params["backbone"]["stage3_block1"]["depthwise"]["kernel"], depthwise)
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors does not exist"):
        train.train(config, tmp_path / "another")


def test_the_affine_of_the_instance_branch_can_start_from_that_of_the_batch_branch(
    config, weights, first_states, tmp_path, capsys
):
    _, arrays = weights
    for choice in ("identity", "bn"):
        config.init_in_affine = choice
        train.train(config, tmp_path / choice)
    fresh, copied = (state.params["backbone"]["head_norm"] for state in first_states)
    assert np.array_equal(fresh["in_scale"], np.ones(32)) and np.array_equal(fresh["in_bias"], np.zeros(32))
    assert np.array_equal(copied["in_scale"], arrays["conv9.bn.weight"])
    assert np.array_equal(copied["in_bias"], arrays["conv9.bn.bias"])
    assert np.array_equal(copied["bn_scale"], fresh["bn_scale"])
    assert first_states[1].params["classifier"].keys() == {"kernel"}
    said = capsys.readouterr().err
    affines = 2 * sum(name.endswith("running_mean") for name in arrays)
    assert f": {len(arrays)} arrays loaded" in said and f": {len(arrays) + affines} arrays loaded" in said


def test_a_file_that_does_not_fit_is_refused_before_images_are_read(config, weights, tmp_path, monkeypatch):
    path, arrays = weights
    safetensors.save_file(arrays | {"conv9.bn.bias": np.ones(5, np.float32)}, path)
    monkeypatch.setattr(train, "load_images", lambda *_: pytest.fail("images were read"))
    with pytest.raises(ValueError, match=r"weights\.safetensors .* does not fit the model: 1 shapes differ"):
        train.train(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_retrieval_with_and_without_the_weights(folder, weights, tmp_path, monkeypatch, capsys):
    options = [f"--weights={weights[0]}", f"--data={folder}", f"--cache={tmp_path}", "--model=tiny", "--size=32"]
    monkeypatch.setattr("sys.argv", ["pretrained_retrieval", *options])
    pretrained_retrieval.main()
    random, loaded = capsys.readouterr().out.splitlines()[-2:]
    assert random.startswith("random weights: R-1 ")
    assert loaded.startswith("loaded weights: R-1 ")
    assert random.split(": ")[1] != loaded.split(": ")[1]
    assert loaded.endswith(" 32 queries")  # 4 domains, 4 identities, 2 images of the second camera


def test_the_command_line_says_so_in_one_sentence(folder, tmp_path, capsys):
    options = [f"--config.data.path={folder}", "--config.data.eval_domains=west", "--config.init=~/nowhere.pth"]
    assert main(["train", "--config=configs/folder.py", f"--workdir={tmp_path / 'w'}", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("metabin train: the weights file /")
    assert error.endswith("/nowhere.pth does not exist\n")


def test_the_bank_of_bau_is_not_of_the_file(config):
    config.method = "bau"
    before = jax.eval_shape(build.build(build.resolve(config)).init)
    state, report = build.with_weights(config, before)
    assert state.bank == before.bank
    assert jax.tree.structure(state) == jax.tree.structure(before)
    assert not [name for name in report.kept if "bank" in name]
