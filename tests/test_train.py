import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import DOMAINS, draw_folder, pixel_net, tiny_config

from metabin_jax import build, train
from metabin_jax.checkpoint import Checkpoints
from metabin_jax.data import synthetic
from metabin_jax.evaluation import evaluate_domain

STEPS = 9


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("train") / "data")


@pytest.fixture(scope="module", autouse=True)
def quick_net():
    with pytest.MonkeyPatch.context() as patch:
        for module in (build, train):
            patch.setattr(module, "build_model", pixel_net)
        yield


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    """The workdir of a run that nothing interrupted, and its result."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, train.train(tiny_config(folder), workdir)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def state_of(config, workdir, step=STEPS):
    with Checkpoints(workdir, scored=config.selection == "source_val", create=False) as checkpoints:
        return checkpoints.restore(build.build(build.resolve(config)).init(), step)


def leaves(state):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def differences(a, b):
    """The names of the leaves that differ in any bit."""
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    return [name for name in a if (a[name].dtype, a[name].tobytes()) != (b[name].dtype, b[name].tobytes())]


def without_rate(workdir):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows(workdir)]


def assert_same_run(config, workdir, other):
    assert differences(state_of(config, workdir), state_of(config, other)) == []
    assert without_rate(workdir) == without_rate(other)
    assert len(rows(workdir)) == STEPS


def kill_after(monkeypatch, step):
    """The next training dies once `step` is done."""
    read_batches = train.read_batches

    def dying(run, images, start, stop):
        yield from read_batches(run, images, start, min(step, stop))
        raise Killed

    monkeypatch.setattr(train, "read_batches", dying)


def test_a_killed_run_resumes_to_the_same_bits(folder, straight, tmp_path, monkeypatch):
    """Killed before the first checkpoint, right after one, within an epoch, and while a checkpoint is written."""
    config = tiny_config(folder)
    for step in (2, 3, 5):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, step)
            train.train(config, tmp_path)
    assert rows(tmp_path)[-1]["step"] == 5
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(Killed))
        train.train(config, tmp_path)
    assert rows(tmp_path)[-1]["step"] == 6
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


SLOW_RUN = """
import sys, time
from pathlib import Path
from metabin_jax import build, train
from tiny_run import pixel_net, tiny_config

build.build_model = train.build_model = pixel_net
read_batches = train.read_batches

def slow(*args):
    for batch in read_batches(*args):
        time.sleep(0.3)
        yield batch

train.read_batches = slow
train.train(tiny_config(Path(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_process_killed_outright_resumes_to_the_same_bits(folder, straight, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent),
        "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(folder), str(tmp_path)], env=environment, stderr=subprocess.PIPE
    )
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert not (tmp_path / "evaluation.json").exists()

    config = tiny_config(folder)
    train.train(config, tmp_path)
    assert_same_run(config, tmp_path, straight[0])


def test_one_trace_serves_training_before_and_after_a_restore(folder, tmp_path, monkeypatch):
    config = tiny_config(folder)
    step_fn = train.make_step(build.build(build.resolve(config)))
    monkeypatch.setattr(train, "make_step", lambda run: step_fn)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 5)
        train.train(config, tmp_path)
    train.train(config, tmp_path)
    assert step_fn.func._cache_size() == 1
    # Negative control: a weakly typed step, as a restore could leave it, is another trace.
    run = build.build(build.resolve(config))
    images = build.load_images(run.config, run.data.records)
    step_fn(run.init().replace(step=0), next(train.read_batches(run, images, 0, 1)))
    assert step_fn.func._cache_size() == 2


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
        programs.append(step_fn.func.lower(run.init(), batch, **step_fn.keywords).as_text())
    assert programs[0] == programs[1]


def test_what_a_run_leaves_behind(folder, straight):
    workdir, result = straight
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints", "evaluation.json",
    }  # fmt: skip
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(STEPS)]
    assert any("tfevents" in path.name for path in (workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "evaluation.json").read_text()) == result
    assert json.loads((workdir / "config.json").read_text())["data"]["train_domains"] == list(DOMAINS[:3])
    assert [row["step"] for row in rows(workdir)] == list(range(1, STEPS + 1))
    for row in rows(workdir):
        assert row.keys() == {
            "step", "alpha", "images_per_second", "base/cross_entropy", "base/triplet",
            "meta_train/scatter", "meta_train/shuffle", "meta_train/triplet", "meta_test/triplet",
            "inner/beta", "inner/rho_change", "inner/clipped", "rho/stem",
        }  # fmt: skip
        assert 0 <= row["rho/stem"] <= 1
        assert 0 <= row["inner/clipped"] <= 1
    learner = build.build(build.resolve(tiny_config(folder))).learner
    alpha = build.alpha_schedule(tiny_config(folder).optimizer, 3)
    for name, schedule in (("inner/beta", learner.beta), ("alpha", alpha)):
        expected = [float(schedule(step)) for step in range(STEPS)]
        assert len(set(expected)) > 2
        assert [row[name] for row in rows(workdir)] == pytest.approx(expected, rel=1e-5)
    scores = result["targets"]["west"]
    assert (result["step"], result["source_mAP"], result["policy"], result["metric"]) == (
        STEPS,
        None,
        "cross-camera",
        "cosine",
    )
    assert (scores["queries"], scores["unmatched"]) == (16, [])
    assert 0 < scores["mINP"] <= scores["mAP"] <= 1


def test_rho_is_averaged_over_the_channels_of_a_stage():
    rho = {
        "backbone": {
            "stem_norm": {"rho": np.array([0.0, 1.0])},
            "stage1_block0": {"a": {"rho": np.array([0.5])}, "b": {"rho": np.array([0.1, 0.1, 0.1])}},
            "stage1_block1": {"a": {"rho": np.array([0.7])}},
        }
    }
    means = {name: float(value) for name, value in train.rho_by_stage(rho).items()}
    assert means == pytest.approx({"rho/stem": 0.5, "rho/stage1": 0.3})
    assert train.rho_by_stage({}) == {}


@pytest.mark.parametrize(("preset", "first"), [("paper", 1), ("official", 10)])
def test_rho_moves_from_the_step_its_preset_says(preset, first, tmp_path, monkeypatch):
    """On the embedded set, cut down to a few images."""
    for name in ("generate", "list_records"):
        few = functools.partial(getattr(synthetic, name), ids_per_domain=4, images_per_id=4)
        monkeypatch.setattr(synthetic, name, few)
    config = tiny_config(tmp_path, preset)
    config.data.source = "synthetic"
    config.data.train_domains = ("plaza", "mall", "street")
    config.data.eval_domains = ("underpass",)
    config.loss.margin = 5.0  # so that there is always something to learn
    config.epochs = 4
    result = train.train(config, tmp_path)
    assert result["targets"]["underpass"]["queries"] == 16
    rho = [row["rho/stem"] for row in rows(tmp_path)]
    assert next(step for step, value in enumerate(rho, start=1) if value != 1) == first, rho


def test_other_methods_have_no_meta_batches(folder, tmp_path):
    config = tiny_config(folder)
    config.method = "bn"
    train.train(config, tmp_path)
    assert not [name for name in rows(tmp_path)[0] if name.startswith(("meta", "inner"))]


@pytest.fixture
def selecting(folder, monkeypatch):
    """A config that selects on held-out source identities, whose scores are given: the best is step 6."""
    scores = {3: 0.2, 6: 0.9, 9: 0.5}
    monkeypatch.setattr(train, "_source_score", lambda run, images, state: scores[int(state.step)])
    config = tiny_config(folder)
    config.selection = "source_val"
    config.val_fraction = 0.5
    return config


def test_the_checkpoint_best_on_the_sources_is_evaluated(selecting, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 7)  # the best is known from before the resumption
        train.train(selecting, tmp_path)
    result = train.train(selecting, tmp_path)
    assert (result["step"], result["source_mAP"]) == (6, 0.9)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "9"]
    assert [(row["step"], row["source_mAP"]) for row in rows(tmp_path) if "source_mAP" in row] == [
        (3, 0.2),
        (6, 0.9),
        (9, 0.5),
    ]
    assert train.evaluate(selecting, tmp_path) == result

    selecting.selection = "last"
    last = train.evaluate(selecting, tmp_path)
    assert (last["step"], last["source_mAP"]) == (9, 0.5)
    assert last["targets"] != result["targets"]


def test_selection_never_looks_at_the_target(folder, tmp_path, monkeypatch):
    config = tiny_config(folder)
    config.selection = "source_val"
    config.val_fraction = 0.5
    config.epochs = 1
    seen = []

    def spy(model, variables, images, records, rows, **settings):
        seen.append({(records[row].domain, records[row].pid) for row in rows})
        return evaluate_domain(model, variables, images, records, rows, **settings)

    monkeypatch.setattr(train, "evaluate_domain", spy)
    result = train.train(config, tmp_path)
    assert [{domain for domain, _ in pairs} for pairs in seen] == [{"east"}, {"north"}, {"south"}, {"west"}]
    data = build.build(build.resolve(config)).data
    trained = {(r.domain, r.pid) for r, pid in zip(data.records, data.pid, strict=True) if pid >= 0}
    assert len(trained) == 6
    assert all(len(pairs) == 2 and not pairs & trained for pairs in seen[:3])
    assert result["source_mAP"] == rows(tmp_path)[-1]["source_mAP"]


def test_a_finished_run_is_only_evaluated_again(folder, straight, monkeypatch):
    monkeypatch.setattr(train, "make_step", lambda run: None)
    assert train.train(tiny_config(folder), straight[0]) == straight[1]


def test_evaluation_of_other_domains_and_settings(folder, straight):
    workdir, result = straight
    config = tiny_config(folder)
    assert train.evaluate(config, workdir) == result
    config.data.eval_domains = ("north", "west")  # a source and the target
    config.eval.policy = "ignore"
    config.eval.batch_size = 5
    other = train.evaluate(config, workdir)
    assert list(other["targets"]) == ["north", "west"]
    assert other["policy"] == "ignore"
    assert other["targets"]["west"] != result["targets"]["west"]
    assert json.loads((workdir / "evaluation.json").read_text()) == other


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.eval_domains", (), "config.data.eval_domains is empty"),
        ("data.eval_domains", ("moon",), "Domain 'moon' is not in"),
        ("eval.policy", "x", "config.eval.policy must be one of"),
        ("data.path", "/nowhere", "Data folder /nowhere does not exist"),
    ],
)
def test_an_evaluation_that_cannot_be(folder, straight, field, value, message):
    config = tiny_config(folder)
    group, name = field.split(".")
    config[group][name] = value
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        train.evaluate(config, straight[0])
    assert message in str(error.value)


def test_an_evaluation_without_a_checkpoint_leaves_no_trace(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: train there first"):
        train.evaluate(tiny_config(folder), tmp_path)
    assert list(tmp_path.iterdir()) == []


def uneven(config):
    config.batch.sampling = "identities"
    config.batch.ids_per_batch = config.batch.images_per_id = 3


def unmarked(config):
    root = draw_folder(Path(config.data.path).with_name("marked"))
    for path in sorted(root.glob("west/*.png")):
        (root / "west" / "query").mkdir(exist_ok=True)
        path.rename(root / "west" / "query" / path.name)
    config.data.path = str(root)


def broken(config):
    root = draw_folder(Path(config.data.path).with_name("broken"))
    (root / "west" / "0001_c1_0.png").write_bytes(b"no image")
    config.data.path = str(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(method="x"), "config.method must be one of"),
        (uneven, "the base batch of 9 images does not divide over 2 devices"),
        (unmarked, "domain 'west' has no gallery image"),
        (broken, "1 of 16 images are broken"),
    ],
)
def test_errors_come_before_the_workdir(change, message, tmp_path):
    config = tiny_config(draw_folder(tmp_path / "data"))
    change(config)
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path / "workdir")
    assert not (tmp_path / "workdir").exists()


def test_a_workdir_of_another_config_is_left_alone(folder, straight):
    files = {path: path.read_bytes() for path in straight[0].glob("*.json*")}
    config = tiny_config(folder)
    config.method = "bn"
    with pytest.raises(ValueError, match=r"holds a run with config\.method='metabin', not 'bn'"):
        train.train(config, straight[0])
    assert {path: path.read_bytes() for path in straight[0].glob("*.json*")} == files


def test_compiled_programs_are_kept_where_jax_was_told_or_at_home(monkeypatch):
    told = jax.config.values["jax_compilation_cache_dir"]
    train.use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == told
    monkeypatch.setenv("HOME", "/home/somebody")
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        train.use_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == "/home/somebody/.cache/metabin_jax/xla"
    finally:
        jax.config.update("jax_compilation_cache_dir", told)
