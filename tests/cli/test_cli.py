import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metabin_jax import cli
from metabin_jax.cli.config_files import load_config
from metabin_jax.cli.training import _print_results
from metabin_jax.data import synthetic
from metabin_jax.models import reid
from metabin_jax.runtime import devices
from metabin_jax.training import evaluate, train

CONFIGS = Path(__file__).parents[2] / "configs"
OWN = "from metabin_jax.training.config import metabin\n\ndef get_config():\n    c = metabin()\n"
DEMO = f"--config={CONFIGS / 'demo.py'}"


def run(capsys, *arguments):
    """Exit status, stdout, stderr."""
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def refused(capsys, *arguments):
    """The sentence on stderr of a command that must fail with exit status 2 and nothing on stdout."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("metabin") and err.endswith("\n") and err.count("\n") == 1, err
    return err


@pytest.fixture
def trained(monkeypatch):
    """Training and evaluation replaced by a record of what they are asked for."""
    calls = []

    def stub(config, workdir):
        calls.append((config, workdir))
        return {"file": "evaluation.json", "step": 3, "targets": {}}

    monkeypatch.setattr(train, "train", stub)
    monkeypatch.setattr(evaluate, "evaluate", stub)
    return calls


def test_a_process_refuses_with_status_2():
    command = [sys.executable, "-m", "metabin_jax"]
    result = subprocess.run([*command, "trian"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "metabin: there is no command 'trian': did you mean train?\n"


def test_an_unknown_command(capsys):
    commands = "index, train, evaluate, report, embed, search, calibrate, export, doctor, prepare, plan, gallery"
    assert refused(capsys, "zzz") == f"metabin: there is no command 'zzz': choose from {commands}\n"
    assert "there is no command '--verbose': " in refused(capsys, "--verbose", "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={dir}/run"], "the following arguments are required: --config (see metabin train --help)"),
        ([DEMO], "the following arguments are required: --workdir"),
        ([DEMO, "--workdir"], "--workdir: expected one argument"),
        (
            [DEMO, "--workdir={dir}/run", "--foo=1"],
            "there is no option '--foo': choose from --help, --config, --workdir, --distributed, --config.FIELD (see",
        ),
        ([DEMO, "--wrkdir={dir}/run"], "there is no option '--wrkdir': did you mean --workdir?"),
        ([DEMO, "--workdi={dir}/run"], "there is no option '--workdi': did you mean --workdir?"),  # no abbreviation
        ([DEMO, "--workdir={dir}/run", "--workdir={dir}/x"], "argument --workdir: is given twice"),
        ([DEMO, DEMO, "--workdir={dir}/run"], "argument --config: is given twice"),
        ([DEMO, "--workdir={dir}/run", "--config.epochs=2", "--config.epochs=2"], "--config.epochs: is given twice"),
        ([DEMO, "--workdir={dir}/run", "--config.epochs"], "argument --config.epochs: expected one argument"),
        ([DEMO, "--workdir={dir}/run", "--config.FIELD=3"], "config has no field 'FIELD'"),
        ([DEMO, "--workdir={dir}/run", "extra"], "unrecognized arguments: extra"),
        (
            ["--config=dmeo", "--workdir={dir}/run"],
            "there is no config 'dmeo': choose from benchmark, demo, finetune, folder, metabin, networks, people, or "
            "give a Python file, such as ./dmeo.py",
        ),
        (["--config=demo.py", "--workdir={dir}/run"], "the config file demo.py does not exist"),
        (["--config=", "--workdir={dir}/run"], "argument --config: must not be empty"),
        (["--config={dir}/no.py", "--workdir={dir}/run"], "no.py does not exist"),
        ([f"{DEMO}:papre", "--workdir={dir}/run"], "the preset must be one of paper, official; got 'papre'"),
        ([DEMO, "--workdir={dir}/run", "--config.optimizer.alhpa=1"], "did you mean alpha?"),
        ([DEMO, "--workdir={dir}/run", "--config.epochs=1.5"], "config.epochs must be a whole number; got '1.5'"),
        ([DEMO, "--workdir={dir}/run", "--config.method=metabn"], "config.method must be one of bn, in, half"),
        ([DEMO, "--workdir={dir}/run", "--config.model.name=vit"], "config.model.name: model must be mobilenetv2_W"),
        ([DEMO, "--workdir={dir}/run", "--config.data.height=16"], "config.data.height must be 32 or more; got 16"),
        ([DEMO, "--workdir={dir}/run", "--config.data.eval_domains=moon"], "there is no domain 'moon' in the data"),
        ([DEMO, "--workdir={dir}/run", "--config.batch.meta_train_domains=-1"], "meta_train_domains must be 0 or more"),
        ([DEMO, "--workdir={dir}/run", "--config.data.domain_by=shop"], "data.domain_by must be one of source, camera"),
        ([DEMO, "--workdir={dir}/run", "--config.batch.meta_train_domains=5"], "there are 5 source domains"),
        ([DEMO, "--workdir={dir}/run", "--config.batch.ids_per_domain=41"], "Domain plaza has 40 identities to train"),
        ([DEMO, "--workdir={dir}/run", "--config.data.source=folder"], "config.data.path is empty"),
        (
            [DEMO, "--workdir={dir}/run", "--config.data.source=folder", "--config.data.path={dir}/no"],
            "no does not exist or is not a folder",
        ),
        (
            [DEMO, "--workdir={dir}/run", "--config.data.source=csv", "--config.data.path={dir}/no.csv"],
            "no.csv does not exist",
        ),
        ([DEMO, "--workdir={dir}/file"], "file is a file: --workdir must name a folder"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_no_workdir(capsys, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    err = refused(capsys, "train", *(argument.format(dir=tmp_path) for argument in arguments))
    assert err.startswith("metabin train: ")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from metabin_jax.training.config import metabin\n\ndef get_config(:", "SyntaxError"),
        ("import nothing_of_that_name", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1", "KeyError: 'get_config'"),
        (
            f"{OWN}    c.seed = 'x'\n    return c",
            "line 5: TypeError",
        ),
        (
            f"{OWN}    c.sed = 1\n    return c",
            "config has no field 'sed': did you mean seed?",
        ),
        ("def get_config():\n    return {}", "get_config() must return a ConfigDict"),
    ],
)
def test_a_config_file_of_ones_own_with_a_mistake(capsys, tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    err = refused(capsys, "train", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert message in err
    assert list(tmp_path.iterdir()) == [file]


def test_options_reach_the_config(capsys, tmp_path, trained):
    options = ["--config", CONFIGS / "metabin.py:official", "--workdir", tmp_path, "--config.optimizer.alpha=1"]
    status, out, _ = run(capsys, "train", *options, "--config.data.path=a=b", "--config.data.eval_domains", "x,y z")
    assert status == 0
    assert out == f"step 3; metrics, checkpoints, and evaluation.json are in {tmp_path}\n"
    ((config, workdir),) = trained
    assert workdir == str(tmp_path)
    assert (config.preset, config.optimizer.alpha, config.data.path) == ("official", 1.0, "a=b")
    assert config.data.eval_domains == ("x", "y z")


def test_results_are_printed(capsys):
    pairs = {"tpr": 0.876, "far": 0.00098, "threshold": 0.51239, "num_positive": 20, "num_negative": 3000}
    no_pairs = {"tpr": None, "far": None, "threshold": None, "num_positive": 0, "num_negative": 9}
    targets = {
        "a": {"unmatched": [], "verification": pairs},
        "b": {"unmatched": list("pqrs"), "verification": pairs},
        "c": {"unmatched": ["p"], "verification": no_pairs},
    }
    some, nothing = {"mean": 0.5, "std": None, "low": 0.4, "high": 0.6}, dict.fromkeys(("mean", "std", "low", "high"))
    metrics = ("R-1", "R-5", "R-10", "mAP", "mINP")
    measured = {
        name: dict.fromkeys(metrics, nothing if name == "c" else some) | {"splits": 1, "queries": 7} for name in "abc"
    }
    benchmark = {"results": measured, "published_percent": [], "notes": ["a note"]}
    results = {"file": "evaluation-rerank.json", "step": 3, "targets": targets, "benchmark": benchmark}
    _print_results(results, "w")
    verified = "verification: TPR 87.6 % at FAR 0.098 %, threshold 0.512 (20 positive, 3,000 negative pairs)"
    number = "50.0 [40.0, 60.0]"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["target", "result", *metrics, "splits", "queries"],
        ["a", "ours", *number.split(), "50.0", "50.0", *number.split(), "50.0", "1", "7"],
        ["b", "ours", *number.split(), "50.0", "50.0", *number.split(), "50.0", "1", "7"],
        ["c", "ours", *["n/a"] * 5, "1", "7"],
    ]
    assert lines[4:] == [
        "",
        "a note",
        "",
        f"a: {verified}",
        "b: 4 queries without a valid match, not counted: p, q, r, ...",
        f"b: {verified}",
        "c: 1 query without a valid match, not counted: p",
        "c: verification: TPR n/a at FAR n/a, threshold n/a (0 positive, 9 negative pairs)",
        "step 3; metrics, checkpoints, evaluation-rerank.json and evaluation-rerank.md are in w",
    ]


@pytest.mark.parametrize("flags", [[], ["--distributed"]])
def test_other_processes_are_looked_for_first_where_asked(capsys, tmp_path, trained, monkeypatch, flags):
    monkeypatch.setattr(devices, "start", lambda: trained.append("start"))
    assert run(capsys, "train", DEMO, *flags, f"--workdir={tmp_path}")[0] == 0
    assert trained[:-1] == ["start"] * len(flags)


def test_an_evaluation_takes_the_saved_config(capsys, tmp_path, trained):
    """Through JSON, which knows no tuples."""
    run(capsys, "train", DEMO, f"--workdir={tmp_path}", "--config.optimizer.alpha=1")
    (config, _) = trained.pop()
    train.describe_run(config, [], tmp_path)
    status, _, _ = run(capsys, "evaluate", "--model", tmp_path)
    assert status == 0
    assert trained.pop()[0] == config

    overrides = (
        "--config.data.eval_domains=mall,plaza",
        "--config.data.train_domains=mall",
        "--config.eval.policy=ignore",
    )
    assert run(capsys, "evaluate", *overrides, f"--model={tmp_path}")[0] == 0
    changed, _ = trained.pop()
    assert changed.data.eval_domains == ("mall", "plaza")
    assert changed.data.train_domains == ("mall",)  # an empty tuple takes any
    assert changed.eval.policy == "ignore"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --model"),
        (["--model="], "argument --model: must not be empty"),
        (["--workdir={dir}/run"], "there is no option '--workdir': choose from --help, --model, "),
        (["--model={dir}/no"], "no does not exist: name a workdir of metabin train or a file of weights"),
        (["--model={dir}/run"], "holds no checkpoint: train there first"),
        (["--model={dir}/run", DEMO], "there is no option '--config': did you mean --config.FIELD?"),
        (["--model={dir}/run", "--config.method=bn"], "config.method was fixed by the training"),
        (["--model={dir}/run", "--config.model.name=tiny"], "config.model.name was fixed by the training"),
        (["--model={dir}/run", "--config.eval.polcy=ignore"], "did you mean policy?"),
        (["--model={dir}/run", "--config.eval.policy=x"], "config.eval.policy must be one of"),
        (["--model={dir}/run", "--config.data.eval_domains="], "config.data.eval_domains is empty"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence_and_no_change(capsys, tmp_path, arguments, message):
    train.describe_run(load_config(str(CONFIGS / "demo.py")), [], tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    err = refused(capsys, "evaluate", *(argument.format(dir=tmp_path) for argument in arguments))
    assert err.startswith("metabin evaluate: ")
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bug_keeps_its_traceback(capsys, tmp_path, monkeypatch):
    """What a library refuses was our mistake: hiding where would help nobody."""
    monkeypatch.setattr(train, "train", lambda config, workdir: json.loads("{"))
    with pytest.raises(ValueError, match="Expecting property name"):
        cli.main(["train", DEMO, f"--workdir={tmp_path}"])
    monkeypatch.setattr(train, "train", lambda config, workdir: list(zip([1], [], strict=True)))
    with pytest.raises(ValueError, match="zip"):
        cli.main(["train", DEMO, f"--workdir={tmp_path}"])
    monkeypatch.setattr(train, "train", lambda config, workdir: Path("/no/such/file").read_text())
    assert "No such file or directory: '/no/such/file'" in refused(capsys, "train", DEMO, f"--workdir={tmp_path}")


def test_train_then_evaluate(capsys, tmp_path, monkeypatch):
    """The demo, but for a net of little more than a stem and a few images."""
    monkeypatch.setitem(reid.BACKBONES, "tiny", reid.BACKBONES["stem"])
    monkeypatch.setattr(synthetic, "list_records", functools.partial(synthetic.list_records, images_per_id=4))
    small = (
        "data.identities=2",
        f"data.cache_dir={tmp_path}/cache",
        "model.name=tiny",
        "data.height=32",
        "batch.ids_per_domain=2",
        "batch.images_per_id=2",
    )
    options = [f"--config.{option}" for option in ("epochs=1", "steps_per_epoch=2", *small)]
    status, out, err = run(capsys, "train", DEMO, f"--workdir={tmp_path}", *options)
    assert status == 0
    assert "\nunderpass  ours" in out and out.endswith(f"evaluation.md are in {tmp_path}\n")
    assert re.search(r"^step: 2/2, .* base loss \d", err, re.MULTILINE)
    assert "Traceback" not in err and "WARNING" not in err
    saved = json.loads((tmp_path / "evaluation.json").read_text())

    status, out, err = run(capsys, "evaluate", f"--model={tmp_path}", "--config.data.eval_domains=mall")
    assert (
        status == 0
        and err.startswith("warning: 2 of 2 identities of mall were trained on (0, 1), so its numbers are better")
        and err.count("\n") == 1
    )
    assert "\nmall    ours" in out
    (file,) = tmp_path.glob("evaluation-eval_domains=mall-*.json")
    assert out.endswith(f"{file.name} and {file.stem}.md are in {tmp_path}\n")
    assert list(json.loads(file.read_text())["targets"]) == ["mall"]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == saved

    assert run(capsys, "evaluate", f"--model={tmp_path}")[0] == 0
    assert json.loads((tmp_path / "evaluation.json").read_text()) == saved
