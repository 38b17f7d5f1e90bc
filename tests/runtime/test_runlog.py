import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tqdm.std

from metabin_jax.runtime import runlog
from metabin_jax.runtime.files import naming, write_json
from metabin_jax.runtime.runlog import MetricsWriter
from metabin_jax.training.config import metabin
from metabin_jax.training.workdir import check_workdir, describe_run, read_config


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def metrics(step):
    return {"base/triplet": jnp.asarray(step / 2), "rho/stem": jnp.asarray(1.0)}


def write(workdir, start, stop, total=100, every=1):
    with MetricsWriter(workdir, start, total, every) as writer:
        for step in range(start + 1, stop + 1):
            writer.step(step, metrics(step), images=8)


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    write_json(path, {"new": 3})
    assert json.loads(path.read_text()) == {"new": 3}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"), naming(tmp_path / "a.json"):
        full()
    with pytest.raises(OSError, match=r"No such file or directory: '/no/such'"), naming(tmp_path / "a.json"):
        Path("/no/such").read_text()


def test_a_damaged_config_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged \(.*\): take it from a copy") as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)


def test_the_config_is_saved_and_every_start_of_the_run(tmp_path):
    workdir = tmp_path / "new" / "run"
    config = metabin("official")
    config.seed = 17
    for _ in range(2):
        check_workdir(config, workdir)
        describe_run(config, [], workdir)
    saved = json.loads((workdir / "config.json").read_text())
    assert (saved["seed"], saved["preset"], saved["optimizer"]["decay_epochs"]) == (17, "official", [40, 70])
    starts = json.loads((workdir / "environment.json").read_text())
    assert len(starts) == 2
    assert starts[0]["versions"].keys() >= {"metabin_jax", "jax", "jaxlib", "flax", "optax", "numpy"}
    assert starts[0]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert starts[0]["command"] == sys.argv
    assert len(starts[0]["devices"]) == 2


def test_a_workdir_is_of_one_config(tmp_path):
    config = metabin()
    describe_run(config, [], tmp_path)
    written = (tmp_path / "config.json").read_text()
    for field, value in (("epochs", 3), ("log_every", 7), ("steps_per_dispatch", 8)):
        config[field] = value
    config.data.path, config.data.cache_dir, config.data.resident = "moved", "elsewhere", True
    config.eval.policy = "ignore"
    check_workdir(config, tmp_path)
    config.optimizer.alpha = 0.5
    with pytest.raises(ValueError, match=r"holds a run with config\.optimizer\.alpha=0\.01, not 0\.5: choose another"):
        check_workdir(config, tmp_path)
    config.optimizer.alpha = 0.01
    config.data.eval_domains = ("a",)
    with pytest.raises(ValueError, match=r"config\.data\.eval_domains=\[\], not \['a'\]"):
        check_workdir(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == written
    with pytest.raises(ValueError, match="is a file"):
        check_workdir(config, tmp_path / "config.json")


@pytest.mark.parametrize(("field", "value"), [("policy", "ignore"), ("metric", "euclidean")])
def test_scores_that_choose_a_checkpoint_keep_their_meaning(tmp_path, field, value):
    config = metabin()
    config.selection = "source_val"
    describe_run(config, [], tmp_path)
    config.eval.rerank = True
    check_workdir(config, tmp_path)
    config.eval[field] = value
    with pytest.raises(ValueError, match=rf"holds a run with config\.eval\.{field}=.*, not '{value}': choose another"):
        check_workdir(config, tmp_path)


def git(folder, *command):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(("git", *identity, *command), cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_revision_is_that_of_this_source(tmp_path, monkeypatch):
    source = tmp_path / "package" / "runlog.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(runlog, "__file__", str(source))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def revision():
        return runlog.environment()["git"]

    assert revision() is None
    git(tmp_path, "init", "--quiet")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "--quiet", "-m", "a")
    assert revision() is None, "installed within somebody's repository, it is not of theirs"
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "--quiet", "-m", "b")
    assert revision() == git(tmp_path, "rev-parse", "HEAD").strip()
    source.write_text("# changed")
    assert revision() == git(tmp_path, "rev-parse", "HEAD").strip() + "+changes"


def test_every_so_many_steps_a_row_and_at_the_last(tmp_path):
    write(tmp_path, 0, 8, total=8, every=3)
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 8]
    for row in rows(tmp_path):
        assert row["base/triplet"] == row["step"] / 2
        assert row["images_per_second"] > 0
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1
    assert events[0].stat().st_size > 200


def test_a_dispatch_of_several_steps_logs_each_on_its_row(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now)
    with MetricsWriter(tmp_path, 0, total=9, log_every=2) as writer:
        for first, last in ((1, 4), (5, 7), (8, 8), (9, 9)):
            steps = np.arange(first, last + 1)
            several = {"base/triplet": jnp.asarray(steps / 2)} if last < 9 else metrics(9)
            writer.step(last, several, images=80 * len(steps), num_steps=len(steps))
            now += len(steps)
    assert rows(tmp_path)[-1].pop("rho/stem") == 1
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6, 8, 9]
    for row in rows(tmp_path):
        assert (row["base/triplet"], row["images_per_second"]) == (row["step"] / 2, 80)


def test_resuming_drops_the_rows_that_will_come_again(tmp_path):
    write(tmp_path, 0, 7)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "base/tri')  # killed in the middle of a row
    write(tmp_path, 5, 9)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 10))
    write(tmp_path, 0, 2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_what_is_flushed_survives_a_kill(tmp_path):
    writer = MetricsWriter(tmp_path, 0, 10, 1)
    writer.step(1, metrics(1), 8)
    assert rows(tmp_path) == []
    writer.flush()
    writer.write(1, {"source_mAP": 0.5})
    assert [row["step"] for row in rows(tmp_path)] == [1, 1]
    assert rows(tmp_path)[1] == {"step": 1, "source_mAP": 0.5}
    writer.step(2, metrics(2), 8)
    writer.step(3, metrics(3), 8)
    assert [row["step"] for row in rows(tmp_path)] == [1, 1, 2]
    writer.__exit__()
    assert [row["step"] for row in rows(tmp_path)] == [1, 1, 2, 3]


def test_the_rate_leaves_out_compilation_but_not_checkpoints(tmp_path, monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now)
    monkeypatch.setattr(tqdm.std, "time", lambda: now)
    with MetricsWriter(tmp_path, 10, total=30, log_every=5) as writer:
        now += 1000  # compiling the first step
        for step in range(11, 31):
            writer.step(step, metrics(step), images=80)
            now += 2
            if step == 20:
                writer.flush()
                now += 10  # writing a checkpoint
    assert [row["images_per_second"] for row in rows(tmp_path)] == [40, 40, 20, 40]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step: 15/30,  0.50 steps/s, 00:30 left, base loss 7.500, 40 images/s"
    assert [line.partition(",")[0] for line in lines] == [f"step: {step}/30" for step in (15, 20, 25, 30)]
    assert "00:00 left" in lines[-1]
