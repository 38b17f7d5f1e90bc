import json

import pytest
from tiny_run import draw_folder

from experiments import demo, unseen_domain
from metabin_jax.config import check


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

    monkeypatch.setattr(unseen_domain, "train", stub)
    return calls


def row(target, method, seed, r1, mean_ap):
    return {"target": target, "method": method, "seed": seed, "R-1": r1, "mAP": mean_ap, "queries": 4}


def test_a_study_runs_every_row_once(trained, tmp_path):
    rows = unseen_domain.study("folder", "data", ["x", "y"], ["bn", "metabin"], [0, 1], tmp_path)
    assert trained == [
        (seed, target, method, f"{target}-{method}-{seed}")
        for seed in (0, 1)
        for target in ("x", "y")
        for method in ("bn", "metabin")
    ]
    assert rows[0] == {"target": "x", "method": "bn", "seed": 0, "R-1": 0.01, "mAP": 0.005, "queries": 5}
    assert unseen_domain.read(tmp_path / "results.jsonl") == rows
    assert unseen_domain.study("folder", "data", ["y", "x"], ["bn"], [1], tmp_path) == rows
    assert len(trained) == 8


def test_a_killed_study_goes_on_where_it_was(trained, tmp_path, monkeypatch):
    work = unseen_domain.train

    def dying(config, workdir):
        if len(trained) == 2:
            raise Killed
        return work(config, workdir)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(unseen_domain, "train", dying)
        unseen_domain.study("synthetic", "", ["underpass"], ["bn", "in", "bin"], [0], tmp_path)
    assert len(unseen_domain.read(tmp_path / "results.jsonl")) == 2
    unseen_domain.study("synthetic", "", ["underpass"], ["bn", "in", "bin"], [0], tmp_path)
    assert [method for _, _, method, _ in trained] == ["bn", "in", "bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_the_table_is_mean_and_deviation_over_seeds():
    rows = [
        row("x", "metabin", 0, 0.50, 0.30),
        row("x", "bn", 0, 0.10, 0.20),
        row("x", "bn", 1, 0.20, 0.20),
        row("x", "bn", 2, 0.30, 0.20),
    ]
    assert unseen_domain.table(rows).splitlines() == [
        "| norm | x |",
        "|---|---|",
        "| bn | 20.0 ± 10.0 / 20.0 ± 0.0 |",
        "| metabin | 50.0 / 30.0 |",
    ]


def test_the_mean_over_targets_takes_complete_seeds_only():
    rows = [
        row("x", "bn", 0, 0.1, 0.2),
        row("y", "bn", 0, 0.3, 0.4),
        row("x", "bn", 1, 0.3, 0.4),
        row("y", "bn", 1, 0.5, 0.6),
        row("x", "bn", 2, 0.9, 0.9),
        row("y", "in", 0, 0.5, 0.5),
    ]
    lines = unseen_domain.table(rows).splitlines()
    assert lines[0] == "| norm | x | y | mean |"
    assert lines[2].endswith("| 40.0 ± 14.1 / 50.0 ± 14.1 | 30.0 ± 14.1 / 40.0 ± 14.1 |")
    assert lines[3] == "| in | - | 50.0 / 50.0 | - |"


def test_the_command_leaves_every_domain_of_a_folder_out_in_turn(trained, tmp_path, monkeypatch, capsys):
    data = draw_folder(tmp_path / "data", ("b", "a"))
    (data / ".hidden").mkdir()
    arguments = ["unseen_domain", "folder", f"--path={data}", f"--workdir={tmp_path / 'w'}", "--seeds", "3"]
    monkeypatch.setattr("sys.argv", [*arguments, "--methods", "metabin"])
    unseen_domain.main()
    assert trained == [(3, "a", "metabin", "a-metabin-3"), (3, "b", "metabin", "b-metabin-3")]
    assert capsys.readouterr().out.startswith("| norm | a | b | mean |")


def test_the_demo_compares_on_the_last_network(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "WORKDIR", tmp_path)
    demo.main()
    assert [call[:3] for call in trained] == [(0, "underpass", "bn"), (0, "underpass", "metabin")]
    out = capsys.readouterr().out
    assert "| metabin | 2.0 / 1.0 |" in out
    assert str(tmp_path) in out
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["method"] == "bn"
