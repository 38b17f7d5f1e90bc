import functools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import DOMAINS, STEPS, draw_folder, killed_after, rows, tiny_config

from metabin_jax.data import synthetic
from metabin_jax.data.records import Record
from metabin_jax.evaluation import embed
from metabin_jax.runtime import files
from metabin_jax.training import build, evaluate, train
from metabin_jax.training.config import metabin

pytestmark = pytest.mark.usefixtures("quick_net")


def test_what_a_run_leaves_behind(folder, straight):
    workdir, result = straight
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "tensorboard", "checkpoints",
        "evaluation.json", "evaluation.md", "records.txt", "lock",
    }  # fmt: skip
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "6", str(STEPS)]
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
    # 16 images of 4 identities, two of each from either camera; fewer than 1000 negative pairs measure no FAR of 0.001.
    assert scores["verification"] == {
        "threshold": None, "tpr": None, "far": None, "num_positive": 32, "num_negative": 192,
    }  # fmt: skip
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


def test_the_official_preset_leaves_rho_alone_for_nine_steps(straight, tmp_path, monkeypatch):
    """On the embedded set, cut down to a few images; `paper`, which does not wait, is the negative control."""
    monkeypatch.setattr(synthetic, "list_records", functools.partial(synthetic.list_records, images_per_id=4))
    config = tiny_config(tmp_path, "official")
    config.data.source, config.data.identities = "synthetic", 4
    config.data.train_domains = ("plaza", "mall", "street")
    config.data.eval_domains = ("underpass",)
    config.loss.margin = 5.0  # so that there is always something to learn
    config.epochs = 4
    result = train.train(config, tmp_path)
    assert result["targets"]["underpass"]["queries"] == 16
    rho = [row["rho/stem"] for row in rows(tmp_path)]
    assert rho[:9] == [1.0] * 9
    assert all(value != 1 for value in rho[9:])
    assert any(row["rho/stem"] != 1 for row in rows(straight[0]))


def test_other_methods_have_no_meta_batches(folder, tmp_path):
    config = tiny_config(folder)
    config.method = "bn"
    train.train(config, tmp_path)
    assert not [name for name in rows(tmp_path)[0] if name.startswith(("meta", "inner"))]


@pytest.fixture(scope="module")
def selecting(tmp_path_factory):
    """A config that holds half of each source's 8 identities out, so that as many train as elsewhere here."""
    config = tiny_config(draw_folder(tmp_path_factory.mktemp("selecting") / "data", ids=8))
    config.selection = "source_val"
    config.val_fraction = 0.5
    return config


def test_the_checkpoint_best_on_the_sources_is_evaluated(selecting, tmp_path, monkeypatch):
    scores = {3: 0.2, 6: 0.9, 9: 0.5}
    monkeypatch.setattr(train, "source_score", lambda run, images, state: scores[int(state.step)])
    config = selecting.copy_and_resolve_references()
    config.keep = 1
    with killed_after(7):  # the best is known from before the resumption
        train.train(config, tmp_path)
    result = train.train(config, tmp_path)
    assert (result["step"], result["source_mAP"]) == (6, 0.9)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "9"]
    assert [(row["step"], row["source_mAP"]) for row in rows(tmp_path) if "source_mAP" in row] == [
        (3, 0.2),
        (6, 0.9),
        (9, 0.5),
    ]
    assert evaluate.evaluate(selecting, tmp_path) == result

    config = selecting.copy_and_resolve_references()
    config.selection = "last"
    last = evaluate.evaluate(config, tmp_path)
    assert (last["step"], last["source_mAP"]) == (9, 0.5)
    assert last["targets"] != result["targets"]


def test_selection_never_looks_at_the_target(selecting, tmp_path, monkeypatch):
    config = selecting.copy_and_resolve_references()
    config.epochs = 1
    seen = []

    def spy(model, variables, images, batch_size, rows):
        seen.append((len(images), rows))
        return embed(model, variables, images, batch_size, rows)

    monkeypatch.setattr(evaluate, "embed", spy)
    result = train.train(config, tmp_path)
    data = build.build(build.resolve(config)).data
    *sources, (number, _) = seen
    assert [records for records, _ in sources] == [len(data.records)] * 3 and number < len(data.records)
    held_out = [{(data.records[row].domain, data.records[row].pid) for row in rows} for _, rows in sources]
    assert [{domain for domain, _ in pairs} for pairs in held_out] == [{"east"}, {"north"}, {"south"}]
    trained = {(r.domain, r.pid) for r, pid in zip(data.records, data.pid, strict=True) if pid >= 0}
    assert len(trained) == 12
    assert all(len(pairs) == 4 and not pairs & trained for pairs in held_out)
    assert result["source_mAP"] == rows(tmp_path)[-1]["source_mAP"]


def test_a_finished_run_is_only_evaluated_again(folder, straight, monkeypatch):
    monkeypatch.setattr(train, "make_step", lambda run: None)
    assert train.train(tiny_config(folder), straight[0]) == straight[1]


def test_evaluation_of_other_domains_and_settings(folder, straight):
    workdir, result = straight
    config = tiny_config(folder)
    assert evaluate.evaluate(config, workdir) == result
    config.data.eval_domains = ("north", "west")  # a source and the target
    config.eval.policy = "ignore"
    config.eval.batch_size = 5
    other = evaluate.evaluate(config, workdir)
    assert list(other["targets"]) == ["north", "west"]
    assert other["policy"] == "ignore"
    assert other["targets"]["west"] != result["targets"]["west"]
    assert json.loads((workdir / other["file"]).read_text()) == other


def test_other_settings_leave_the_evaluation_of_the_run_alone(folder, straight):
    workdir, result = straight
    own = [workdir / "evaluation.json", workdir / "evaluation.md"]
    before = [path.read_bytes() for path in own]
    config = tiny_config(folder)
    config.eval.rerank = True
    other = evaluate.evaluate(config, workdir)
    name = evaluate.file_name(tiny_config(folder), config)
    assert (result["file"], other["file"]) == ("evaluation.json", f"{name}.json")
    assert re.fullmatch("evaluation-rerank=True-[0-9a-f]{8}", name)
    assert [path.read_bytes() for path in own] == before
    assert json.loads((workdir / f"{name}.json").read_text()) == other != result
    assert (workdir / f"{name}.md").read_text() != (workdir / "evaluation.md").read_text()

    # The same settings write the same file again; what changes no result is no other setting.
    own[0].unlink()
    config.eval.rerank, config.eval.batch_size = False, 7
    assert evaluate.evaluate(config, workdir)["file"] == "evaluation.json"
    assert sorted(json.loads(own[0].read_text())) == sorted(result)


def test_the_name_of_an_evaluation_says_what_differs():
    own, config = metabin(), metabin()
    assert evaluate.file_name(own, config) == "evaluation"
    config.eval.rerank, config.data.eval_domains, config.eval.far = True, ("north", "west"), 0.01
    name = evaluate.file_name(own, config)
    assert re.fullmatch("evaluation-eval_domains=north,west-rerank=True-far=0.01-[0-9a-f]{8}", name)
    assert evaluate.file_name(config, own).startswith("evaluation-eval_domains=-rerank=False-far=0.001-")
    names = set()
    for domain in ("a/b", "a b", "<img>\udcff", "x" * 300, "x" * 301, "a,b"):
        config.data.eval_domains = (domain,)
        name = evaluate.file_name(own, config)
        assert len(name) < 120 and not set(name) & set("/ <>\udcff")
        names.add(name)
    config.data.eval_domains = ("a", "b")
    assert evaluate.file_name(own, config) not in names and len(names) == 6


def test_steps_before_the_ranking_and_the_false_accept_rate(folder, straight):
    workdir, plain = straight
    config = tiny_config(folder)
    config.eval.far = 0.05
    far = evaluate.evaluate(config, workdir)
    verified = far["targets"]["west"].pop("verification")
    assert 0 < verified["far"] <= 0.05 and 0 <= verified["tpr"] <= 1 and -1 <= verified["threshold"] <= 1
    assert far["targets"]["west"].items() < plain["targets"]["west"].items()  # the ranking is as before
    seen = [plain["targets"]["west"]["mAP"]]
    for name, value in (("query_expansion", 3), ("rerank", True)):
        config.eval[name] = value
        result = evaluate.evaluate(config, workdir)
        assert result[name] == value != plain[name]
        new = [note for note in result["benchmark"]["notes"] if note not in plain["benchmark"]["notes"]]
        assert (
            new and "re-ranking" in new[-1]
            if config.eval.rerank
            else new == ["ours: after query expansion by 3 images"]
        )
        assert f"- {new[-1]}\n" in (workdir / result["file"]).with_suffix(".md").read_text()
        assert result["targets"]["west"]["verification"] == verified
        seen.append(result["targets"]["west"]["mAP"])
    assert len(set(seen)) == 3


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_what_cannot_be_measured_is_null(straight, tmp_path):
    """Targets seen by one camera have no match under the cross-camera policy."""
    workdir, _ = straight
    config = tiny_config(draw_folder(tmp_path / "data", cameras=1))
    file = evaluate.evaluate(config, workdir)["file"]
    result = json.loads((workdir / file).read_text(), parse_constant=refuse_constant)
    scores = result["targets"]["west"]
    assert [scores[name] for name in ("R-1", "R-5", "R-10", "mAP", "mINP")] == [None] * 5
    assert (scores["queries"], len(scores["unmatched"])) == (0, 8)
    assert (scores["verification"]["tpr"], scores["verification"]["num_positive"]) == (None, 0)
    with pytest.raises(AssertionError, match="NaN is no JSON"):  # that the reader above would have seen it
        json.loads(json.dumps({"mAP": float("nan")}), parse_constant=refuse_constant)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "nan.json", {"mAP": float("nan")})
    assert not (tmp_path / "nan.json").exists()


def test_the_source_score_leaves_out_sources_without_a_valid_query(folder, monkeypatch):
    monkeypatch.setattr(evaluate, "build_model", lambda *args: None)
    feature_ND = np.array([[1, 0], [0.6, 0.8], [0.8, 0.6], [0, 1], [1, 0]], np.float32)
    monkeypatch.setattr(evaluate, "embed", lambda *args, rows: feature_ND[rows])
    labels = [(1, 1, "a"), (1, 2, "a"), (2, 1, "a"), (1, 1, "b"), (2, 1, "b")]
    records = [Record(f"{n}.png", pid, camid, name, "all") for n, (pid, camid, name) in enumerate(labels)]
    held_out = {"a": np.arange(3), "b": np.arange(3, 5)}
    data = SimpleNamespace(num_ids=1, records=records, held_out=held_out)
    run, state = SimpleNamespace(data=data, config=tiny_config(folder)), SimpleNamespace(params=0, rho=0, batch_stats=0)
    assert evaluate.source_score(run, None, state) == 0.5  # both find the image of pid 2 first
    feature_ND[1] = (0.99, 0.1)
    assert evaluate.source_score(run, None, state) == 1
    del held_out["a"]
    assert math.isnan(evaluate.source_score(run, None, state))


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
        evaluate.evaluate(config, straight[0])
    assert message in str(error.value)


def test_an_evaluation_without_a_checkpoint_leaves_no_trace(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: train there first"):
        evaluate.evaluate(tiny_config(folder), tmp_path)
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
        (broken, "1 of 16 images is broken"),
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
