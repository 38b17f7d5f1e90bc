"""A study's runs: each once, whatever happens to it on the way."""

import json

import pytest
from tiny_run import draw_folder

from experiments import demo, study, table2, table4
from experiments.settings import Setting
from experiments.study import Job, Study, main, read, run_study
from experiments.tables import Row
from metabin_jax.training.config import check

ROWS = [Row(name, {"method": name}) for name in ("bn", "metabin")]
SYNTHETIC = Setting("synthetic")


class Killed(Exception):
    pass


@pytest.fixture
def trained(monkeypatch):
    """Training replaced by a record of what it is asked for; R-1 and mAP tell the runs apart."""
    calls = []

    def stub(config, workdir):
        check(config)
        calls.append((config.seed, *config.data.eval_domains, config.method, workdir.name))
        scores = {"R-1": len(calls) / 100, "mAP": len(calls) / 200, "queries": 5, "mINP": 0.0}
        return {"targets": {config.data.eval_domains[0]: scores}}

    monkeypatch.setattr(study, "train", stub)
    return calls


def run_main(monkeypatch, of, *arguments):
    monkeypatch.setattr("sys.argv", ["study", *map(str, arguments)])
    main(of)


def test_a_study_runs_every_row_once(trained, tmp_path):
    setting = Setting("folder", str(tmp_path))
    lines = run_study(ROWS, setting, [0, 1, 0], tmp_path, ["x", "y", "x"])
    assert trained == [
        (seed, target, method, f"{target}-method-{method}-{seed}")
        for seed in (0, 1)
        for method in ("bn", "metabin")
        for target in ("x", "y")
    ]
    assert lines[0] == {"run": "method=bn", "target": "x", "seed": 0, "R-1": 0.01, "mAP": 0.005, "queries": 5}
    assert read(tmp_path / "results.jsonl") == lines
    assert run_study(ROWS[:1], setting, [1], tmp_path, ["y", "x"]) == lines
    assert len(trained) == 8


def test_a_study_that_died_is_resumed(trained, tmp_path, monkeypatch):
    rows = [Row(name, {"method": name}) for name in ("bn", "in", "bin")]
    work = study.train

    def dying(config, workdir):
        if len(trained) == 2:
            raise Killed
        return work(config, workdir)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(study, "train", dying)
        run_study(rows, SYNTHETIC, [0], tmp_path)
    assert len(read(tmp_path / "results.jsonl")) == 2
    run_study(rows, SYNTHETIC, [0], tmp_path)
    assert [method for _, _, method, _ in trained] == ["bn", "in", "bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "results.jsonl", "setting.json"]


def test_a_workdir_has_results_of_one_setting(trained, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    run_study([], SYNTHETIC, [0], tmp_path / "w", ["x"])  # which has no result
    run_study(ROWS, Setting("folder", str(tmp_path / "a")), [0], tmp_path / "w", ["x"])
    run_study(ROWS, Setting("folder", str(tmp_path / "b/../a")), [1], tmp_path / "w", ["x"])
    assert len(trained) == 4
    for other in (
        Setting("folder", str(tmp_path / "b")),
        Setting("folder", str(tmp_path / "a"), smoke=True),
        SYNTHETIC,
    ):
        with pytest.raises(ValueError, match=r"w has results of another setting, .*: choose another --workdir"):
            run_study(ROWS, other, [2], tmp_path / "w", ["x"])
    assert len(trained) == 4


def test_fields_of_the_config_can_be_set_for_every_row(tmp_path, monkeypatch, capsys):
    """On top of each row's config; the results tell them apart from the results of other settings."""
    seen = []

    def stub(config, workdir):
        seen.append((config.method, config.meta.gamma, config.data.height, config.optimizer.decay_epochs, config.seed))
        return {"targets": {"underpass": {"R-1": 0.25, "mAP": 0.5, "queries": 5}}}

    monkeypatch.setattr(study, "train", stub)
    fields = ["--config.meta.gamma=0.25", "--config.data.height=96"]
    arguments = [f"--workdir={tmp_path / 'w'}", "--seeds", "4", "--rows", "BN", "MetaBIN"]
    run_main(monkeypatch, table4.STUDY, *arguments, *fields)  # behind an option of several values
    assert seen == [(method, 0.25, 96, (7, 9), 4) for method in ("bn", "metabin")]
    kept = {"meta.gamma": "0.25", "data.height": "96"}
    assert [line["config"] for line in read(tmp_path / "w" / "results.jsonl")] == [kept, kept]
    assert json.loads((tmp_path / "w" / "setting.json").read_text())["config"] == kept
    assert "All rows with --config.meta.gamma=0.25 --config.data.height=96." in capsys.readouterr().out

    run_main(monkeypatch, table4.STUDY, *fields[::-1], *arguments)  # the same in another order: nothing to do
    assert len(seen) == 2
    for other in ([], fields[:1], [*fields[:1], "--config.data.height=64"], [*fields, "--config.epochs=3"]):
        with pytest.raises(SystemExit):
            run_main(monkeypatch, table4.STUDY, *other, *arguments)
        assert "w has results of another setting" in capsys.readouterr().err
    (tmp_path / "w" / "setting.json").unlink()
    with pytest.raises(SystemExit):
        run_main(monkeypatch, table4.STUDY, *arguments)
    assert len(seen) == 2


def test_default_results_without_a_setting_are_not_mixed_with_others(trained, tmp_path, monkeypatch, capsys):
    """As in experiments/results, whose settings are not committed."""
    arguments = [f"--workdir={tmp_path}", "--seeds", "0", "--rows", "BN", "IN"]
    run_study([row for row in table4.STUDY.rows if row.name == "BN"], SYNTHETIC, [0], tmp_path)
    (tmp_path / "setting.json").unlink()
    with pytest.raises(SystemExit):
        run_main(monkeypatch, table4.STUDY, "--config.epochs=3", *arguments)
    assert "has results of another setting" in capsys.readouterr().err and len(trained) == 1
    run_main(monkeypatch, table4.STUDY, *arguments)
    assert len(trained) == 2 and "All rows with" not in capsys.readouterr().out
    assert all("config" not in line for line in read(tmp_path / "results.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.meta.gamma"], "--config.meta.gamma: write --config.FIELD=VALUE, each field once"),
        (["--config.epochs=2", "--config.epochs=3"], "--config.epochs=3: write --config.FIELD=VALUE, each field once"),
        (["--config.epoch=2"], "experiments.table2: config has no field 'epoch': did you mean epochs?"),
        (["--config.epochs=many"], "config.epochs must be"),
        (["--config.seed=3"], "--config.seed: a study sets this field itself, choose it by --seeds"),
        (["--config.method=bn"], "--config.method: a study sets this field itself, choose it by --rows"),
        (["--config.meta.test_losses=triplet"], "the row 'MetaBIN: Lce, fixed' sets config.meta.test_losses"),
        (["--confg.epochs=2"], "unrecognized arguments: --confg.epochs=2"),
        (["--seed=2"], "unrecognized arguments: --seed=2"),
    ],
)
def test_fields_that_cannot_be_set_are_refused(arguments, message, trained, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, table2.STUDY, f"--workdir={tmp_path}", *arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not trained and not (tmp_path / "results.jsonl").exists()


def test_a_line_that_is_not_json_is_named(tmp_path):
    log = tmp_path / "results.jsonl"
    log.write_text('{"row": "bn"}\n{"row": "b')
    with pytest.raises(ValueError, match=r"results\.jsonl has a line that is not JSON"):
        read(log)
    assert read(tmp_path / "nothing.jsonl") == []


def test_the_command_leaves_every_domain_of_a_folder_out_in_turn(trained, tmp_path, monkeypatch, capsys):
    data = draw_folder(tmp_path / "data", ("b", "a"))
    (data / ".hidden").mkdir()
    arguments = ["--data=folder", f"--path={data}", f"--workdir={tmp_path / 'w'}", "--seeds", 3, "--rows", "MetaBIN"]
    run_main(monkeypatch, table4.STUDY, *arguments)
    assert trained == [(3, name, "metabin", f"{name}-method-metabin-3") for name in "ab"]
    out = capsys.readouterr().out
    assert out.startswith("| row | a | b | mean | seeds | paper (reported) |\n")
    assert "difference" not in out  # of one row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=folder"], "table4: --data=folder needs --path"),
        (["--data=finetune", "--path=x"], "table4: --data=finetune needs --init"),
        (["--data=folder", "--path=/nowhere"], "table4: Data folder /nowhere does not exist"),
        (["--data=paper", "--targets", "viper"], "--targets: the paper's sets are evaluated together"),
        (["--data=paper", "--path=/nowhere"], "/nowhere"),
    ],
)
def test_what_the_command_needs_is_said_in_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, table4.STUDY, f"--workdir={tmp_path}", *arguments)
    assert stop.value.code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last


def test_the_table_of_the_paper_comes_with_its_source(trained, tmp_path, monkeypatch, capsys):
    rows = (Row("BN", {"method": "bn"}, (50.9, 59.5)), Row("own", {"method": "metabin"}, (1.0, 2.0), supervised=True))
    monkeypatch.setattr(Setting, "halve", lambda self, target, workdir: None)
    run_main(
        monkeypatch, Study("x", "About x.", rows, [("BN", "own")], "Table 9"), f"--workdir={tmp_path}", "--seeds", 0, 1
    )
    unseen, supervised, words, tests, how, source = capsys.readouterr().out.strip().split("\n\n")
    assert unseen.endswith("| BN | 2.0 ± 1.4 / 1.0 ± 0.7 | 2 | 50.9 / 59.5 |")
    assert supervised.endswith("| own | 3.0 ± 1.4 / 1.5 ± 0.7 | 2 | 1.0 / 2.0 |")
    assert words == "R-1 / mAP in %, mean ± standard deviation over seeds."
    assert tests.splitlines()[2:] == ["| BN - own | -1.0 | - | -0.5 | - | 2 |"]
    assert "paired t test" in how
    assert source == "paper (reported): Table 9, with its net on its data; not measured here."


def test_the_demo_compares_on_the_last_network(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "WORKDIR", tmp_path)
    monkeypatch.setattr("sys.argv", ["demo"])
    demo.main()
    assert [call[:3] for call in trained] == [(0, "underpass", "bn"), (0, "underpass", "metabin")]
    out = capsys.readouterr().out
    assert "| MetaBIN | 2.0 / 1.0 | 1 |" in out
    assert str(tmp_path) in out
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["run"] == "method=bn"


def test_the_demo_explains_itself_and_trains_nothing(trained, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo", "--help"])
    with pytest.raises(SystemExit) as stop:
        demo.main()
    assert stop.value.code == 0 and "python -m experiments.demo" in capsys.readouterr().out and not trained


def test_a_run_over_several_sets_counts_as_their_mean(monkeypatch, tmp_path):
    targets = {"a": {"R-1": 0.2, "mAP": 0.1, "queries": 3}, "b": {"R-1": 0.4, "mAP": 0.3, "queries": 4}}
    monkeypatch.setattr(study, "train", lambda config, workdir: {"targets": targets})
    line = study.run_job(Job(ROWS[0], "paper", 7, Setting("paper"), tmp_path))
    assert line == {
        "run": "method=bn", "target": "paper", "seed": 7,
        "R-1": pytest.approx(0.3), "mAP": pytest.approx(0.2), "queries": 7,
    }  # fmt: skip


def test_a_line_keeps_how_far_the_inner_step_went(monkeypatch, tmp_path):
    def stub(config, workdir):
        workdir.mkdir()
        rows = [
            {"step": 1, "inner/rho_change": 0.1, "inner/clipped": 0.5},
            {"step": 1, "source_mAP": 0.5},
            {"step": 2, "inner/rho_change": 0.3, "inner/clipped": 0.0},
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"targets": {"underpass": {"R-1": 0.2, "mAP": 0.1, "queries": 3}}}

    monkeypatch.setattr(study, "train", stub)
    line = study.run_job(Job(ROWS[1], "underpass", 0, SYNTHETIC, tmp_path))
    assert (line["rho_change"], line["clipped"]) == (pytest.approx(0.2), 0.25)
