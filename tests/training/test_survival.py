"""What a training survives, and what it refuses in one sentence: signals, NaN, damage, other data, a second process."""

import errno
import fcntl
import json
import math
import os
import pickle
import re
import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import STEPS, assert_same_run, killed_after, rows, state_of, tiny_config

from metabin_jax.runtime import events
from metabin_jax.runtime.errors import Stopped, UserError
from metabin_jax.training import evaluate, train
from metabin_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_net")
BETWEEN = 4  # a step within the second epoch


@pytest.fixture
def half_done(folder, tmp_path):
    """A run with checkpoints of steps 3 and 6, in a workdir of its own."""
    config = tiny_config(folder)
    with killed_after(7):
        train.train(config, tmp_path / "run")
    return config, tmp_path / "run"


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture
def heard():
    """Signals that the process may have been told to ignore, as in the background of a shell or under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_after_its_step_and_a_second_one_at_once(folder, straight, tmp_path, monkeypatch, number):
    read_batches = train.read_batches
    handlers = []

    def signalled(*arguments):
        for step, batch in enumerate(read_batches(*arguments), start=1):
            if step == BETWEEN:
                os.kill(os.getpid(), number)
                handlers.append(signal.getsignal(signal.SIGTERM))
            yield batch

    config = tiny_config(folder)
    before = signal.getsignal(signal.SIGINT)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Stopped, match="stopped at step 4 of 9: the same command") as stop,
    ):
        patch.setattr(train, "read_batches", signalled)
        train.train(config, tmp_path)
    assert stop.value.status == 128 + number
    sent = pickle.loads(pickle.dumps(stop.value))  # as the process of a study sends it
    assert (str(sent), sent.status) == (str(stop.value), stop.value.status)
    assert handlers == [signal.SIG_DFL] and signal.getsignal(signal.SIGINT) == before
    assert saved(tmp_path) == [3, BETWEEN]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert train.train(config, tmp_path) == straight[1]
    assert_same_run(config, tmp_path, straight[0])


def test_checkpoints_come_between_epochs_too(folder, straight, tmp_path):
    config = tiny_config(folder)
    config.checkpoint_minutes, config.keep = 0.0, 2
    with killed_after(5):
        train.train(config, tmp_path)
    assert saved(tmp_path) == [4, 5]
    train.train(config, tmp_path)
    assert_same_run(config, tmp_path, straight[0])


def test_checkpoints_come_after_so_many_minutes(folder, quick_net, tmp_path, monkeypatch):
    """Nine steps of a minute each."""
    now, read_batches = [0.0], train.read_batches

    def a_minute_each(*arguments):
        for batch in read_batches(*arguments):
            now[0] += 60
            yield batch

    monkeypatch.setattr(train, "read_batches", a_minute_each)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: now[0]))
    config = tiny_config(folder)
    config.epochs, config.steps_per_epoch, config.checkpoint_minutes, config.keep = 1, 9, 2.5, 9
    train.train(config, tmp_path)
    assert saved(tmp_path) == [3, 6, 9]


@pytest.mark.parametrize(
    ("method", "alpha", "decay", "what"),
    [
        ("metabin", 1e30, 0, r"step \d+ is not finite: .*base/"),
        ("bn", 1e30, 1e30, "step 1 is not finite: the updated parameters"),
    ],
)
def test_what_is_not_finite_ends_the_run_with_its_step(folder, tmp_path, method, alpha, decay, what):
    """The second: the losses of the first step are finite, its update is not."""
    config = tiny_config(folder)
    config.method, config.optimizer.weight_decay = method, decay
    config.optimizer.alpha, config.log_every = alpha, 1000
    with pytest.raises(UserError, match=what + r".*\.png.*last good checkpoint.*alpha") as error:
        train.train(config, tmp_path)
    assert "\n" not in str(error.value)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert all(step < int(str(error.value).split()[1]) for step in saved(tmp_path))


def test_debug_nans_names_the_operation(folder, quick_net, tmp_path):
    config = tiny_config(folder)
    config.debug_nans, config.optimizer.alpha = True, 1e30
    with pytest.raises(UserError) as error:
        train.train(config, tmp_path)
    assert re.match(
        r"invalid value \(nan\) encountered in \w+. The operation is in \w+ \(.*metabin_jax/\w+.py, line \d+\); "
        "the last good checkpoint is none. Try a smaller",
        str(error.value),
    )
    assert not jax.config.jax_debug_nans and error.value.__cause__ is None


def test_a_state_that_is_not_finite_gets_no_checkpoint(half_done):
    config, workdir = half_done
    state = state_of(config, workdir, 6)
    bad = state.replace(step=state.step + 1, params={**state.params, "new": np.array([1.0, math.inf])})
    with Checkpoints(workdir, scored=False) as checkpoints, pytest.raises(UserError, match="params/new is not finite"):
        checkpoints.save(bad)
    assert saved(workdir) == [3, 6]


def damage(workdir, step):
    """Changes one byte of the largest file."""
    file = max((p for p in (workdir / f"checkpoints/{step}").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["byte", "empty", "arrays"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(half_done, straight, capsys, how):
    config, workdir = half_done
    if how == "byte":
        damage(workdir, 6)
    elif how == "empty":
        (workdir / "checkpoints/7").mkdir()
    else:
        shutil.rmtree(workdir / "checkpoints/6/state")
    step = 7 if how == "empty" else 6
    with pytest.raises(UserError, match=f"checkpoints/{step} is damaged") as error:
        evaluate.evaluate(config, workdir)
    assert "\n" not in str(error.value)
    assert train.train(config, workdir) == straight[1]
    assert f"checkpoints/{step} is damaged" in capsys.readouterr().err
    assert_same_run(config, workdir, straight[0])


def test_without_a_whole_checkpoint_nothing_starts_again_in_silence(half_done):
    config, workdir = half_done
    for step in (3, 6):
        damage(workdir, step)
    with pytest.raises(UserError, match=r"no checkpoint of .* can be read"):
        train.train(config, workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(UserError, match="has logged 7 steps, but its checkpoints are gone"):
        train.train(config, workdir)


def test_a_run_without_its_config_is_refused(half_done):
    config, workdir = half_done
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json"):
        train.train(config, workdir)


def test_a_run_knows_its_images(half_done, straight, tmp_path):
    """A moved folder is the same data. Two identities swapped, an image less or another content are not."""
    config, workdir = half_done
    moved = tmp_path / "moved"
    shutil.copytree(config.data.path, moved)
    config.data.path = str(moved)
    first, second = sorted((moved / "east").glob("0000_*"))[0], sorted((moved / "east").glob("0001_*"))[0]

    def refused(words):
        with pytest.raises(UserError, match=words):
            train.train(config, workdir)

    content = first.read_bytes()
    first.write_bytes(content + b"0")
    refused("trained on other images: its record .*east.*0000_c1")
    times = first.stat().st_atime_ns, first.stat().st_mtime_ns
    first.write_bytes(content[:-1] + b"0")
    os.utime(first, ns=times)
    refused("trained on other images: its record .*east.*0000_c1")
    first.unlink()
    refused("trained on other images")
    first.write_bytes(content)
    swapped = second.with_name(second.name.replace("0001", "0009"))
    second.rename(swapped)
    refused("trained on other images: .*0001_")
    swapped.rename(second)
    assert train.train(config, workdir)["step"] == STEPS
    assert_same_run(config, workdir, straight[0])


def test_a_second_process_is_told_of_the_first(half_done):
    config, workdir = half_done
    with (workdir / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"is in use: process {os.getpid()} on \S+ trains there"):
            train.train(config, workdir)


def test_tensorboard_cannot_end_a_training(folder, straight, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events.RecordWriter, "write", full)
    config = tiny_config(folder)
    train.train(config, tmp_path)
    assert capsys.readouterr().err.count("events are no longer written") == 1
    assert_same_run(config, tmp_path, straight[0])


def test_a_full_disk_is_one_sentence_and_costs_one_checkpoint(folder, straight, tmp_path, monkeypatch):
    config = tiny_config(folder)
    from orbax.checkpoint import CheckpointManager

    save = CheckpointManager.save

    def full(self, step, *arguments, **named):
        if step == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="checkpoint of step 6 could not be written"):
        patch.setattr(CheckpointManager, "save", full)
        train.train(config, tmp_path)
    assert saved(tmp_path) == [3]
    train.train(config, tmp_path)
    assert_same_run(config, tmp_path, straight[0])
