"""The studies of the repository: their rows can be trained, and each runs from its command line."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_run import DOMAINS, draw_folder

from experiments import beyond, table2, table3, table4
from experiments.settings import Setting
from experiments.study import Job, main, read, report, run_study
from experiments.tables import Row
from metabin_jax.algorithm import Batch
from metabin_jax.data import dataset, synthetic
from metabin_jax.training import build, config, evaluate

STUDIES = [*(module.STUDY for module in (table2, table3, table4)), *beyond.STUDIES.values()]
every_study = pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path, optimised_again):
    """Image caches go below tmp_path."""
    monkeypatch.setenv("HOME", str(tmp_path))


@every_study
def test_rows_and_their_folders_are_told_apart(study, tmp_path):
    names = [row.name for row in study.rows]
    folders = {Job(row, "underpass", 0, Setting("synthetic"), tmp_path).folder for row in study.rows}
    assert len(folders) == len(set(names)) == len(names) and max(len(path.name) for path in folders) < 200
    assert {name for pair in study.compare for name in pair} <= set(names)
    assert all("|" not in name for name in names)
    assert all(row.paper for row in study.rows) == bool(study.source)


@every_study
def test_every_row_can_be_trained(study, tmp_path):
    """Each is built from its config, and its step traced; no two rows of a table are the same training."""
    folder = draw_folder(tmp_path / "data", (*DOMAINS, "woods", "zoo"), cameras=4)
    setting, seen = Setting("folder", str(folder), smoke=True), []
    setting.halve("east", tmp_path)
    for row in study.rows:
        settings = Job(row, "east", 0, setting, tmp_path).config()
        run = build.build(build.resolve(settings))
        assert run.data.domains == (
            tuple(f"east, camera {k}" for k in (1, 2, 3, 4))
            if row.supervised
            else ("north", "south", "west", "woods", "zoo")[: row.sources or None]
        )
        pid_N, domain_N = np.zeros(4, np.int32), np.arange(4) // 2
        batch = Batch(np.zeros((4, 32, 32, 3), np.float32), pid_N, domain_N, jax.random.key(0))
        after, _ = jax.eval_shape(run.learner.train_step, jax.eval_shape(run.init), *[batch] * 3)
        assert jax.tree.structure(after) == jax.tree.structure(jax.eval_shape(run.init))
        seen.append(settings.to_json())
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("study", "row"),
    [
        (table2.STUDY, "MetaBIN: Lce, fixed"),
        (table3.STUDY, "BIN, Lce + Ltr, MLDG cyclic"),
        (table3.STUDY, "MetaBIN, without episode separation"),
        (table4.STUDY, "MetaBIN, supervised"),
        (beyond.STUDIES["order"], "MetaBIN, exact"),
        (beyond.STUDIES["sources"], "MetaBIN, 2 sources"),
        (beyond.STUDIES["others"], "MixStyle"),
        (beyond.STUDIES["others"], "MetaBIN + BAU's losses"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_smoke(study, row, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "runs"
    monkeypatch.setattr("sys.argv", ["study", "--smoke", f"--workdir={workdir}", "--rows", row])
    main(study)
    (line,) = read(workdir / "results.jsonl")
    assert (line["target"], line["seed"]) == ("underpass", 0)
    assert 0 < line["mAP"] < 1 and line["queries"] > 0
    assert f"| {row} | {100 * line['R-1']:.1f} / {100 * line['mAP']:.1f} | 1 |" in capsys.readouterr().out
    assert ("rho_change" in line) == ("MetaBIN" in row and "without" not in row)
    main(study)
    assert len(read(workdir / "results.jsonl")) == 1


def test_smoke_on_a_folder(tmp_path, monkeypatch):
    folder, workdir = draw_folder(tmp_path / "data"), tmp_path / "runs"
    arguments = ["study", "--smoke", "--jobs=1", "--data=folder", f"--path={folder}", f"--workdir={workdir}", "--rows"]
    for study, row in ((table4.STUDY, "BIN, supervised"), (beyond.STUDIES["sources"], "MetaBIN, 2 sources")):
        monkeypatch.setattr("sys.argv", [*arguments, row])
        main(study)
    # Every other of four persons is tested, or all of them, by two images of each of two cameras.
    assert [(line["target"], line["queries"]) for line in read(workdir / "results.jsonl")] == [
        ("east", 8),
        ("east", 16),
    ]


def committed_seeds(study):
    """Seeds of the study's tables in docs/results_300_steps.md."""
    return range(5 if study.name in ("beyond sources", "beyond others") else 10)


@every_study
def test_committed_rows_are_found_and_make_the_tables_of_the_docs(study, tmp_path):
    """No row is trained again, and every line of the tables is in docs/results_300_steps.md."""
    root, seeds = Path(__file__).parents[2], committed_seeds(study)
    shutil.copy(root / "experiments/results/synthetic/results.jsonl", tmp_path)
    lines = run_study(study.rows, Setting("synthetic"), seeds, tmp_path, work=pytest.fail)
    text = report(study, [line for line in lines if line["seed"] in seeds], study.compare)
    page = (root / "docs/results_300_steps.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) >= len(study.rows) + len(study.compare) + 4
    assert [line for line in rows if line not in page] == []


def test_a_study_beyond_the_paper_is_chosen_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["beyond", "--help"])
    with pytest.raises(SystemExit) as stop:
        beyond.main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name, study in beyond.STUDIES.items():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert line.endswith(".") and study.about.startswith(line.split(maxsplit=1)[1])

    shutil.copy(Path(__file__).parents[2] / "experiments/results/synthetic/results.jsonl", tmp_path)
    monkeypatch.setattr("sys.argv", ["beyond", "clip", f"--workdir={tmp_path}", "--seeds", *map(str, range(10))])
    beyond.main()
    assert "| MetaBIN, plain clip | 38.1 ± 8.3 / 32.0 ± 8.4 | 10 | 0.014 |" in capsys.readouterr().out

    monkeypatch.setattr("sys.argv", ["beyond", "clap"])
    with pytest.raises(SystemExit) as stop:
        beyond.main()
    assert stop.value.code == 2 and "'clap'" in capsys.readouterr().err


def test_half_of_the_persons_train_and_the_others_are_tested(tmp_path):
    folder = draw_folder(tmp_path / "data", ("shop",), ids=5, cameras=2, per_camera=3)
    Setting("folder", str(folder)).halve("shop", tmp_path)
    rows = list(csv.DictReader((tmp_path / "halves" / "shop.csv").read_text().splitlines()))
    assert {row["pid"] for row in rows if row["split"] == "train"} == {"0", "2", "4"}
    assert Counter((row["pid"], row["camid"], row["split"]) for row in rows if row["split"] != "train") == {
        (pid, camid, "all"): 3 for pid in "13" for camid in "12"
    }
    config_ = Setting("folder", str(folder)).config("shop", supervised=True, workdir=tmp_path)
    run = build.build(build.resolve(config_))
    assert run.data.domains == ("shop, camera 1", "shop, camera 2") and len(run.data.records) == 18
    tested, _ = evaluate.domain_splits(config_, "shop", evaluate.read_targets(config_))
    assert tested[0].query_row.tolist() == tested[0].gallery_row.tolist() and len(tested[0].query_row) == 12


def test_a_supervised_batch_takes_no_more_persons_than_a_camera_has(tmp_path):
    folder = draw_folder(tmp_path / "data", ("kiosk", "shop"), ids=5)
    for file in (folder / "kiosk").glob("0004_c2_*"):
        file.unlink()
    draw_folder(folder.with_name("more"), ("mall",), ids=20)
    (folder.with_name("more") / "mall").rename(folder / "mall")
    setting = Setting("folder", str(folder))
    taken = {name: setting.config(name, True, tmp_path).batch.ids_per_domain for name in ("kiosk", "shop", "mall")}
    assert taken == {"kiosk": 2, "shop": 3, "mall": 4}
    assert setting.config("kiosk", False, tmp_path).batch.ids_per_domain == 4


def test_a_target_with_too_few_persons_is_refused_before_anything_runs(tmp_path):
    folder = draw_folder(tmp_path / "data", ("kiosk", "shop"), ids=3)
    for file in (folder / "shop").glob("0002_c2_*"):
        file.unlink()
    rows, started = [Row("x", {}, supervised=True)], []
    with pytest.raises(ValueError, match="every other person of 'shop', of whom camera 2 has 1, and a batch needs two"):
        run_study(rows, Setting("folder", str(folder)), [0], tmp_path / "runs", work=started.append)
    assert not started


def test_synthetic_people_are_written_as_they_are(tmp_path):
    Setting("synthetic").halve("underpass", tmp_path)
    records = dataset.read("csv", str(tmp_path / "halves" / "underpass.csv"))
    images = dataset.load_images("synthetic", dataset.read("synthetic", "", ("underpass",)), (64, 32), "")
    assert len(records) == len(images) == 320
    np.testing.assert_array_equal(np.asarray(Image.open(records[7].path)), images[7])


def test_fields_of_the_command_line_count_last(tmp_path):
    """After the fields of the setting, of supervised rows and of --smoke; halves are written at the chosen size."""
    fields = {"data.height": "48", "data.width": "40", "batch.images_per_id": "3", "meta.test_losses": "triplet"}
    setting = Setting("synthetic", smoke=True, overrides=fields)
    found = setting.config("underpass", True, tmp_path)
    assert (found.data.height, found.data.width) == (48, 40) and found.batch.images_per_id == 3
    assert found.meta.test_losses == ("triplet",) and found.data.domain_by == "camera"
    setting.halve("underpass", tmp_path)
    (first, *_) = dataset.read("csv", str(tmp_path / "halves" / "underpass.csv"))
    with Image.open(first.path) as image:
        assert image.size == (40, 48)


def test_the_papers_setting_is_its_protocol(tmp_path):
    unseen = Setting("paper", "~/sets", "weights.pth").config("paper", False, tmp_path)
    config.check(unseen)
    assert unseen.data.protocol == "paper" and unseen.data.path == "~/sets" and unseen.init == "weights.pth"
    assert unseen.data.eval_domains == ("viper", "prid2011", "grid", "ilids") and unseen.epochs == 100
    assert unseen.model.name == "mobilenetv2_1.4"
    supervised = Setting("paper").config("market1501", True, tmp_path)
    config.check(supervised)
    assert supervised.data.train_domains == supervised.data.eval_domains == ("market1501",)
    assert supervised.data.train_splits == ("train",) and supervised.data.domain_by == "camera"
    assert (supervised.epochs, supervised.meta.gamma, supervised.meta.test_losses) == (
        120,
        0.2,
        ("triplet", "cross_entropy"),
    )


def test_a_study_of_a_folder_runs_supervised_rows_on_each_domain(tmp_path):
    folder = draw_folder(tmp_path / "data", ("a", "b"))
    rows = [row for row in table4.STUDY.rows if row.name == "BN, supervised"]
    setting = Setting("folder", str(folder))
    asked = []

    def work(job):
        asked.append(job.setting.config(job.target, job.row.supervised, job.workdir).data.path)
        return {"run": job.row.run, "target": job.target, "seed": 0, "R-1": 0.0, "mAP": 0.0, "queries": 1}

    run_study(rows, setting, [0], tmp_path / "runs", work=work)
    assert asked == [str(tmp_path / "runs" / "halves" / f"{name}.csv") for name in "ab"]
    assert all(len(dataset.read("csv", path)) == 16 for path in asked)


def test_a_row_trains_on_the_first_sources_of_its_setting(tmp_path):
    folder = draw_folder(tmp_path / "data", ids=2, cameras=1, per_camera=1)
    for setting, target, count, expected in (
        (Setting("synthetic"), "underpass", 2, synthetic.DOMAIN_NAMES[:2]),
        (Setting("synthetic", smoke=True), synthetic.DOMAIN_NAMES[0], 4, synthetic.DOMAIN_NAMES[1:5]),
        (Setting("folder", str(folder)), "north", 2, ("east", "south")),
        (Setting("paper", "~/sets"), "paper", 3, ("cuhk02", "cuhk03", "market1501")),
    ):
        found = Job(Row("x", {}, sources=count), target, 0, setting, tmp_path).config()
        config.check(found)
        assert found.data.train_domains == expected and target not in expected


def test_too_few_sources_are_refused_before_anything_runs(tmp_path):
    folder = draw_folder(tmp_path / "data", ids=2, cameras=1, per_camera=1)
    rows = [Row(f"{count}", {}, sources=count) for count in (3, 4)]
    started = []
    with pytest.raises(ValueError, match=r"on 4 sources, but beside 'east' there are 3 \(north, south, west\)"):
        run_study(rows, Setting("folder", str(folder)), [0], tmp_path / "runs", work=started.append)
    assert not started
