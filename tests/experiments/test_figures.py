"""The figures and Table 1: what they share, and each from its command line."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the figures are drawn with matplotlib")

from experiments import fig2, fig3, fig4, fig5, figures, table1
from experiments.settings import Setting
from experiments.study import Job, read, run_study
from experiments.tables import mean_std
from metabin_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("optimised_again")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The workdir of all smoke runs, which share trainings."""
    return tmp_path_factory.mktemp("runs")


def run(analysis, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["figure", *map(str, arguments)])
    figures.main(analysis)


def line(run="method=metabin", target="x", seed=0, **numbers):
    return {"run": run, "target": target, "seed": seed, **numbers}


# --- what they share ------------------------------------------------------------------------------------------------


def test_a_seed_counts_by_its_mean_over_all_targets():
    lines = [
        line(target="x", value=[1, 2]),
        line(target="y", value=[3, 6]),
        line(target="x", value=[7, 0], seed=2),
        line(target="y", value=[9, 0], seed=2),
        line(target="x", value=[100, 100], seed=1),
    ]
    np.testing.assert_array_equal(figures.per_seed(lines, lambda x: x["value"]), [[2, 4], [8, 0]])
    with pytest.raises(ValueError, match="no seed has numbers for all of x, y"):
        figures.per_seed(lines[1:3], lambda x: x["value"])


def test_means_and_deviations_in_words():
    assert mean_std([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert mean_std([0.12345], 3) == "0.123"
    np.testing.assert_array_equal(figures.deviation(np.array([[1.0, 5], [3, 5]])), [math.sqrt(2), 0])
    np.testing.assert_array_equal(figures.deviation(np.array([[1.0, 5]])), [0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=folder"], "experiments.fig4: --data=folder needs --path"),
        (["--redraw=nothing.jsonl"], "nothing.jsonl holds no numbers"),
    ],
)
def test_what_a_figure_needs_is_said_in_one_sentence(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(fig4.ANALYSIS, monkeypatch, *arguments)
    assert stop.value.code and message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_missing_package_is_named_before_anything_is_trained(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(SystemExit):
        run(fig4.ANALYSIS, monkeypatch, f"--workdir={tmp_path}")
    assert "it needs matplotlib: .venv/bin/pip install matplotlib" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- from the command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [fig4, fig5, fig2, fig3, table1], ids=lambda module: module.__name__)
def test_smoke(module, runs, monkeypatch, capsys):
    if module is fig3:
        pytest.importorskip("sklearn", reason="Figure 3 takes its t-SNE from scikit-learn")
    analysis = module.ANALYSIS
    run(analysis, monkeypatch, "--smoke", "--jobs=1", f"--workdir={runs}")
    log = runs / f"{analysis.name}.jsonl"
    words = capsys.readouterr().out
    assert {line["seed"] for line in read(log)} == {0}

    # Nothing is trained or measured again, and words and picture are of the numbers alone.
    before, trained = log.read_bytes(), (runs / "results.jsonl").read_bytes()
    monkeypatch.setattr(figures, "check_trained", None)
    run(analysis, monkeypatch, "--smoke", "--jobs=1", f"--workdir={runs}")
    assert (log.read_bytes(), (runs / "results.jsonl").read_bytes()) == (before, trained)
    assert capsys.readouterr().out == words
    if analysis.draw:
        picture = log.with_suffix(".png")
        assert words.rstrip().endswith(str(picture))
        copy = runs / "copies" / "numbers.jsonl"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(before)
        run(analysis, monkeypatch, f"--redraw={copy}")
        assert copy.with_suffix(".png").read_bytes() == picture.read_bytes()


def test_the_embeddings_of_a_trained_run_are_placed(runs, monkeypatch):
    """By a stand-in for t-SNE, so that it needs no scikit-learn; the drawn people are 8, of 8 images each."""
    run(fig5.ANALYSIS, monkeypatch, "--smoke", "--jobs=1", f"--workdir={runs}")
    setting = Setting("synthetic", smoke=True)
    (row,) = figures.from_table4("MetaBIN")(setting, runs)
    monkeypatch.setattr(fig3, "tsne", lambda embedding_ND: 100 * embedding_ND[:, :2])
    found = fig3.measure(Job(row, "underpass", 0, setting, runs))["domains"]["underpass"]
    assert found["pid"] == [pid for pid in sorted(set(found["pid"])) for _ in range(8)] and len(found["x"]) == 64
    assert found["query"] == [1, 0, 0, 0, 0, 0, 0, 0] * 8
    assert 0 < found["match"] < 2 and 0 < found["other"] < 2 and len(set(found["x"])) > 20


@pytest.fixture(scope="module")
def evaluated(runs):
    """A trained and evaluated run of a smoke study."""
    setting = Setting("synthetic", smoke=True)
    (row,) = figures.from_table4("MetaBIN")(setting, runs)
    run_study([row], setting, [0], runs, ["underpass"])
    return Job(row, "underpass", 0, setting, runs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": 1}, "step 1, not 2"),
        ({"policy": "ignore"}, "policy 'ignore', not 'cross-camera'"),
        ({"metric": "euclidean"}, "metric 'euclidean', not 'cosine'"),
        ({"rerank": True}, "rerank True, not False"),
        ({"query_expansion": 3, "rerank": True}, "rerank True, not False; query_expansion 3, not 0"),
        ({"targets": {}}, "targets , not underpass"),
        ({"targets": {"underpass": {}, "plaza": {}}}, "targets underpass, plaza, not underpass"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_evaluation_of_other_settings_is_refused(change, words, evaluated, tmp_path):
    shutil.copytree(evaluated.folder, tmp_path / evaluated.folder.name)
    job = dataclasses.replace(evaluated, workdir=tmp_path)
    file = job.folder / "evaluation.json"
    honest = json.loads(file.read_text())
    assert figures.scores(job) == honest["targets"] and list(honest["targets"]) == ["underpass"]
    file.write_text(json.dumps(honest | change))
    with pytest.raises(UserError) as error:
        figures.scores(job)
    assert str(error.value) == (
        f"{file} is of other settings than this study's ({words}): evaluate the run again by "
        f"metabin evaluate --model={job.folder}"
    )


def test_a_run_whose_folder_is_gone_is_named(runs, monkeypatch, tmp_path, capsys):
    run(fig5.ANALYSIS, monkeypatch, "--smoke", "--jobs=1", f"--workdir={runs}")
    (tmp_path / "results.jsonl").write_bytes((runs / "results.jsonl").read_bytes())
    with pytest.raises(SystemExit):
        run(fig5.ANALYSIS, monkeypatch, "--smoke", f"--workdir={tmp_path}")
    assert "underpass-method-metabin-0 holds no checkpoint" in capsys.readouterr().err
