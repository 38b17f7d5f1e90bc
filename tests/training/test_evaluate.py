"""Evaluations of a run: of its own settings, of others, and those that cannot be."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import draw_folder, tiny_config

from metabin_jax.data.records import Record
from metabin_jax.runtime import files
from metabin_jax.training import evaluate, train
from metabin_jax.training.config import metabin

pytestmark = pytest.mark.usefixtures("quick_net")


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


def test_a_domain_is_measured_as_it_is_alone_whatever_comes_before_it(folder, straight):
    def measured(*domains):
        config = tiny_config(folder)
        config.data.eval_domains = domains
        return evaluate.evaluate(config, straight[0])["targets"]

    alone = {domain: measured(domain)[domain] for domain in ("north", "west")}
    assert measured("north", "west") == measured("west", "north") == alone
    assert alone["north"]["mAP"] != alone["west"]["mAP"]


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
    config.data.identities = own.data.identities + 1  # other synthetic people
    assert evaluate.file_name(own, config).startswith(f"evaluation-identities={config.data.identities}-eval_domains=")
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
