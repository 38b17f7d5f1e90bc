import functools
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import DOMAINS, STEPS, draw_folder, killed_after, rows, tiny_config

from metabin_jax.data import synthetic
from metabin_jax.evaluation import embed
from metabin_jax.training import build, evaluate, train

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
