"""Killed anywhere and started again, a run ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from tiny_run import (
    Killed,
    assert_same_run,
    differences,
    killed_after,
    resident_config,
    rows,
    state_of,
    tiny_config,
    without_rate,
)

from metabin_jax.algorithm import MetaBIN
from metabin_jax.training import build, train
from metabin_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_net")


def test_a_killed_run_resumes_to_the_same_bits(folder, straight, tmp_path, monkeypatch):
    """Killed before the first checkpoint, right after one, within an epoch, and while a checkpoint is written."""
    config = tiny_config(folder)
    for step in (2, 3, 5):
        with killed_after(step):
            train.train(config, tmp_path)
    assert rows(tmp_path)[-1]["step"] == 5

    def dying_save(*_):
        assert rows(tmp_path)[-1]["step"] == 6, "a checkpoint must not be ahead of the log"
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", dying_save)
        train.train(config, tmp_path)
    with Checkpoints(tmp_path, scored=False, create=False) as checkpoints:
        assert checkpoints.latest_step() == 3
    result = train.train(config, tmp_path)
    assert_same_run(config, tmp_path, straight[0])
    assert result == straight[1]
    assert len(json.loads((tmp_path / "environment.json").read_text())) == 5


def test_a_run_of_another_seed_differs(folder, straight, tmp_path):
    """The negative control of the test before: the comparison sees every kind of leaf that training changes."""
    config = tiny_config(folder)
    config.seed = 1
    train.train(config, tmp_path)
    differ = differences(state_of(config, tmp_path), state_of(config, straight[0]))
    assert {name.split("[")[0].split("<")[0] for name in differ} >= {".params", ".batch_stats", ".opt_state"}
    assert without_rate(tmp_path) != without_rate(straight[0])


def test_a_run_can_be_made_longer(folder, straight, tmp_path):
    config = tiny_config(folder)
    config.epochs = 1
    assert train.train(config, tmp_path)["step"] == 3
    config.epochs = 3
    train.train(config, tmp_path)
    assert_same_run(config, tmp_path, straight[0])


def test_a_run_moves_between_the_host_and_a_resident_set(folder, straight, tmp_path, monkeypatch):
    """Epochs of 3 steps, in dispatches of 2 and 1; killed within an epoch each time."""
    sizes = []
    compile_ahead = train.compile_ahead

    def spy(jitted, state, batch, *more):
        sizes.append(batch.num_steps)
        return compile_ahead(jitted, state, batch, *more)

    monkeypatch.setattr(train, "compile_ahead", spy)
    config = resident_config(folder, steps_per_dispatch=2)
    with killed_after(5):
        train.train(config, tmp_path)
    assert sizes == [2, 1]
    with killed_after(8):
        train.train(tiny_config(folder), tmp_path)
    assert train.train(config, tmp_path) == straight[1]
    assert_same_run(config, tmp_path, straight[0])
    assert train.train(config, tmp_path) == straight[1]  # done, and only evaluated again


SLOW_RUN = """
import sys, time
from pathlib import Path
from metabin_jax.training import train
from tiny_run import pixel_nets, tiny_config

read_batches = train.read_batches

def slow(*args):
    for batch in read_batches(*args):
        time.sleep(0.3)
        yield batch

train.read_batches = slow
with pixel_nets():
    train.train(tiny_config(Path(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_process_killed_outright_resumes_to_the_same_bits(folder, straight, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", SLOW_RUN, str(folder), str(tmp_path)]
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        while not log.exists() or len(log.read_text().splitlines()) < 4:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "evaluation.json").exists()

    config = tiny_config(folder)
    train.train(config, tmp_path)
    assert_same_run(config, tmp_path, straight[0])


def test_one_trace_serves_training_before_and_after_a_restore(folder, tmp_path, monkeypatch):
    traced = []
    train_step = MetaBIN.train_step
    monkeypatch.setattr(MetaBIN, "train_step", lambda *args: traced.append(1) or train_step(*args))
    config = tiny_config(folder)
    run = build.build(build.resolve(config))
    step_fn = train.make_step(run)
    monkeypatch.setattr(train, "make_step", lambda run: step_fn)
    with killed_after(5):
        train.train(config, tmp_path)
    train.train(config, tmp_path)
    assert len(traced) == 1
    # Negative control: a step that is a Python number, as a restore could leave it, is another trace.
    batch = next(train.read_batches(run, build.load_images(run.config, run.data.records), 0, 1))
    jax.eval_shape(step_fn, run.init().replace(step=0), batch, run.key)
    assert len(traced) == 2


def test_seeds_share_one_program(folder, monkeypatch):
    """So that a study over seeds compiles once."""
    programs = []
    for seed in (0, 1):
        config = tiny_config(folder)
        config.seed = seed
        run = build.build(build.resolve(config))
        images = build.load_images(run.config, run.data.records)
        step_fn = train.make_step(run)
        batch = next(train.read_batches(run, images, 0, 1))
        programs.append(step_fn.lower(run.init(), batch, run.key).as_text())
    assert programs[0] == programs[1]
