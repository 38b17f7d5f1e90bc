import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from metabin_jax.algorithm import TrainState
from metabin_jax.training.checkpoint import Checkpoints


def state(step):
    rng = np.random.default_rng(step)
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"classifier": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}},
        rho={},
        batch_stats={"mean": jnp.asarray(rng.normal(size=4), jnp.bfloat16)},
        opt_state=(({}, jnp.asarray(rng.integers(9, size=2))), None),
    )


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def save(workdir, scores):
    """Opens the folder anew before every step, as a run does that is killed after each."""
    for step, score in enumerate(scores, start=1):
        with Checkpoints(workdir, scored=any(scores), keep=2) as checkpoints:
            checkpoints.save(state(step), score)


def test_what_is_restored_is_what_was_saved(tmp_path):
    save(tmp_path, [None, None])
    with Checkpoints(tmp_path, scored=False) as checkpoints:
        assert checkpoints.latest_step() == 2
        like = jax.tree.map(jnp.zeros_like, state(2))
        restored = checkpoints.restore(like, 2)
    assert jax.tree.structure(restored) == jax.tree.structure(state(2))
    for got, expected, zero in zip(*map(jax.tree.leaves, (restored, state(2), like)), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        assert (np.asarray(got) != np.asarray(zero)).any()


def test_a_state_comes_back_on_the_devices_that_are_asked_for(tmp_path):
    save(tmp_path, [None])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    with Checkpoints(tmp_path, scored=False) as checkpoints:
        restored = checkpoints.restore(jax.device_put(state(0), replicated), 1)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {replicated}


@pytest.mark.parametrize(
    ("scores", "kept", "selected"),
    [
        ([None, None, None], [2, 3], 3),
        ([0.1, 0.2, 0.3], [2, 3], 3),
        ([0.3, 0.1, 0.2], [1, 2, 3], 1),
        ([0.1, 0.3, 0.2, 0.25], [2, 3, 4], 2),
        ([0.3, 0.3], [1, 2], 2),
        ([0.3, None, 0.2, None], [1, 3, 4], 1),  # those within an epoch have no score
    ],
)
def test_the_latest_and_the_best_are_kept(tmp_path, scores, kept, selected):
    save(tmp_path, scores)
    assert saved_steps(tmp_path) == kept
    with Checkpoints(tmp_path, scored=any(scores), create=False) as checkpoints:
        assert checkpoints.latest_step() == len(scores)
        assert checkpoints.selected_step() == selected
        assert checkpoints.score(selected) == scores[selected - 1]


def test_the_last_of_a_scored_run_can_be_had(tmp_path):
    save(tmp_path, [0.3, 0.1])
    with Checkpoints(tmp_path, scored=False, create=False) as checkpoints:
        assert checkpoints.selected_step() == 2


def test_where_there_is_nothing_to_select(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere holds no checkpoint: train there first"):
        Checkpoints(tmp_path / "nowhere", scored=False, create=False)
    assert list(tmp_path.iterdir()) == []
    with (
        Checkpoints(tmp_path / "empty", scored=False) as checkpoints,
        pytest.raises(ValueError, match="empty holds no checkpoint: train there first"),
    ):
        checkpoints.selected_step()
    save(tmp_path / "unscored", [None])
    with (
        Checkpoints(tmp_path / "unscored", scored=True) as checkpoints,
        pytest.raises(ValueError, match="no checkpoint with a score: it was not trained with selection=source_val"),
    ):
        checkpoints.selected_step()


def test_a_killed_save_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save(tmp_path, [None])
    real = os.rename, os.replace

    def killed(*_, **__):
        raise KeyboardInterrupt

    with Checkpoints(tmp_path, scored=False) as checkpoints:
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(state(2))
            checkpoints.wait()
        for name, function in zip(("rename", "replace"), real, strict=True):
            monkeypatch.setattr(os, name, function)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "something half-written must be there"
    with Checkpoints(tmp_path, scored=False, create=False) as reader:  # such as an evaluation during a training
        assert reader.latest_step() == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2, "which may still be written"
    with Checkpoints(tmp_path, scored=False) as checkpoints:
        assert checkpoints.latest_step() == 1
        np.testing.assert_array_equal(
            checkpoints.restore(state(0), 1).batch_stats["mean"], state(1).batch_stats["mean"]
        )
        checkpoints.save(state(2))
    assert saved_steps(tmp_path) == [1, 2]


def test_variables_can_be_read_without_the_devices_of_the_training(tmp_path):
    """A checkpoint written on two devices, read by a process that has one: trained on GPUs, evaluated on a laptop."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    with Checkpoints(tmp_path, scored=False) as checkpoints:
        checkpoints.save(jax.device_put(state(5), NamedSharding(mesh, PartitionSpec())))
    script = (
        "import sys, jax, numpy as np; from metabin_jax.training.checkpoint import Checkpoints\n"
        "assert jax.device_count() == 1\n"
        "with Checkpoints(sys.argv[1], scored=False, create=False) as checkpoints:\n"
        "    variables = checkpoints.restore_variables(5)\n"
        "assert variables.keys() == {'params', 'rho', 'batch_stats'} and not variables['rho']\n"
        "np.save(sys.argv[1] + '/kernel.npy', variables['params']['classifier']['kernel'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "kernel.npy"), state(5).params["classifier"]["kernel"])
