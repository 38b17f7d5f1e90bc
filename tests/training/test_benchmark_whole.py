"""A benchmark from raw folders to its table: prepare, train, evaluate, as `configs/benchmark.py` puts them together."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import SMALL_SETS
from tiny_run import draw_folder

from experiments import table4
from experiments.study import main, read
from metabin_jax.data.sets import prepare
from metabin_jax.training.train import train

CONFIG = Path(__file__).parents[2] / "configs" / "benchmark.py"
SOURCES = ("market1501", "cuhk02", "cuhk03", "cuhksysu", "dukemtmcreid")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The four small targets at full size, with random pictures; of each source four persons, seen twice."""
    raw = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    for record in (record for target in SMALL_SETS.values() for record in target(str(raw))):
        Path(record.path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 2, 3), np.uint8)).save(record.path)
    persons = draw_folder(raw / "drawn", ("a",), cameras=1) / "a"
    names = {
        "market1501": "{pid:04d}_c{view}s1_000001_00.jpg",
        "cuhk02": "{pid:03d}_1.png",
        "cuhk03": "1_{pid:03d}_{view}_01.png",
        "cuhksysu": "p{pid:05d}_n0{view}_s00001_hard0.png",
        "dukemtmcreid": "{pid:04d}_c{view}_f0046182.jpg",
    }
    folders = {
        "market1501": "bounding_box_train",
        "cuhk02": "P1/cam{view}",
        "cuhk03": "images_detected",
        "cuhksysu": "cropped_image",
        "dukemtmcreid": "bounding_box_train",
    }
    for source in SOURCES:
        for pid in range(1, 5):
            for view in (1, 2):
                file = raw / source / folders[source].format(view=view) / names[source].format(pid=pid, view=view)
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.open(persons / f"{pid - 1:04d}_c1_{view - 1}.png").save(file)
    for pair in range(2, 6):
        for view in (1, 2):
            (raw / f"cuhk02/P{pair}/cam{view}").mkdir(parents=True)
    for view, folder in enumerate(("query", "bounding_box_test"), start=1):
        for source in ("market1501", "dukemtmcreid"):
            file = raw / source / folder / names[source].format(pid=11, view=view)
            file.parent.mkdir()
            Image.open(persons / "0000_c1_0.png").save(file)
    data_dir = tmp_path_factory.mktemp("tfds")
    for name in (*SOURCES, *SMALL_SETS):
        prepare.prepare(name, raw, data_dir, allow_incomplete=name in SOURCES)
    return data_dir


def test_from_raw_folders_to_the_table(data_dir, quick_net, tmp_path):
    config = runpy.run_path(str(CONFIG))["get_config"]("p1")
    config.init = ""
    config.data.path = str(data_dir)
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.eval_domains = ("viper",)  # of the four
    config.data.height = config.data.width = 32
    config.model.name, config.model.dtype = "tiny", "float32"
    config.batch.images_per_id = 2
    config.epochs, config.steps_per_epoch = 1, 2
    results = train(config, tmp_path / "run")
    assert results == json.loads((tmp_path / "run/evaluation.json").read_text())
    measured = results["benchmark"]["results"]
    assert (measured["viper"]["splits"], measured["viper"]["queries"]) == (10, 3160)
    assert measured["viper"]["R-1"]["low"] <= measured["viper"]["R-1"]["mean"] <= measured["viper"]["R-1"]["high"]
    assert measured["viper"]["R-1"]["mean"] < 0.02  # noise finds one in 316
    assert "splits of viper: shipped with metabin_jax" in results["benchmark"]["notes"]
    assert "| viper | ours |" in (tmp_path / "run/evaluation.md").read_text()


def test_a_set_that_is_not_prepared_is_named_with_what_to_run(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "tfds", ignore=shutil.ignore_patterns("dukemtmcreid"))
    config = runpy.run_path(str(CONFIG))["get_config"]("paper")
    config.init = ""
    config.data.path = str(tmp_path / "tfds")
    with pytest.raises(FileNotFoundError, match=r"'dukemtmcreid' is not prepared .*: run metabin prepare dukemtmcreid"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_study_runs_on_the_papers_sets(data_dir, optimised_again, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = "MetaBIN", "BN, supervised"
    arguments = ["--data=paper", f"--path={data_dir}", "--smoke", "--jobs=1", f"--workdir={tmp_path / 'runs'}"]
    monkeypatch.setattr("sys.argv", ["study", *arguments, "--rows", *rows])
    main(table4.STUDY)
    lines = read(tmp_path / "runs/results.jsonl")
    assert [(line["target"], line["queries"]) for line in lines] == [
        ("paper", 10 * (316 + 100 + 125 + 60)),
        ("market1501", 1),
    ]
    assert "| MetaBIN | " in capsys.readouterr().out
