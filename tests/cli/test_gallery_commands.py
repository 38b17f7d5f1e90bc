"""`metabin gallery` as people type it."""

import csv
import dataclasses
import os
import shutil

import numpy as np
import pytest
from tiny_run import draw_folder

from metabin_jax import cli
from metabin_jax.retrieval.encoder import embed_images
from metabin_jax.retrieval.features import read, write
from metabin_jax.retrieval.gallery import Gallery
from metabin_jax.retrieval.listing import list_images
from metabin_jax.training import trained

pytestmark = pytest.mark.usefixtures("quick_net")


@pytest.fixture
def pictures(tmp_path):
    return draw_folder(tmp_path / "pictures", domains=("east",))


def run(capsys, *arguments, status=0):
    assert cli.main(["gallery", *map(str, arguments)]) == status
    return capsys.readouterr()


def test_a_gallery_grows_and_answers(capsys, straight, pictures, tmp_path):
    file, model = tmp_path / "g.db", f"--model={straight[0]}"
    some = tmp_path / "some"
    shutil.copytree(pictures / "east", some / "east")
    removed = sorted((some / "east").iterdir())[-3:]
    for path in removed:
        path.rename(tmp_path / path.name)
    out, err = run(capsys, "add", file, some, model)
    assert (out, err) == (f"13 images added, 0 unchanged skipped: {file} has 13\n", "")
    for path in removed:
        (tmp_path / path.name).rename(path)
    first = sorted((some / "east").iterdir())[0]
    first.write_bytes(first.read_bytes() + b"0")
    assert run(capsys, "add", file, some, model).out.startswith("4 images added, 12 unchanged skipped")
    assert run(capsys, "add", file, some, model).out.startswith("0 images added, 16 unchanged skipped")

    run(capsys, "list", file, f"--output={tmp_path}/list.csv")
    with (tmp_path / "list.csv").open(encoding="utf-8", newline="") as listed:
        rows = list(csv.DictReader(listed))
    assert [row["path"] for row in rows] == sorted(map(str, (some / "east").iterdir()))
    assert rows[0] == {"path": str(first), "pid": "0", "camid": "1", "domain": "east"}

    # Who: against the features themselves.
    query = pictures / "east" / "0002_c2_1.png"
    (tmp_path / "names.csv").write_text("path,pid\n" + "".join(f"{r['path']},person {r['pid']}\n" for r in rows))
    assert run(capsys, "label", file, tmp_path / "names.csv").out == f"16 images labelled in {file}\n"
    out = run(capsys, "add", file, some, model).out.splitlines()
    assert out[0] == f"0 images added, 16 unchanged skipped: {file} has 16"
    assert out[1].startswith("16 images kept another identity, which metabin gallery label changes: ")
    embedded, _ = embed_images(trained.load(straight[0]), list_images(some))
    own = embedded.path.tolist().index(str(some / "east" / query.name))
    cosine_G = embedded.feature @ embedded.feature[own]
    best = {pid: cosine_G[embedded.pid == pid].max() for pid in np.unique(embedded.pid)}
    second = sorted(best, key=best.get)[-2]
    options = ("identify", file, query, model)
    out = run(capsys, *options, "--threshold=0.9").out
    assert out == f"{query}: person 2  (nearest person 2 of east 1.0000, then person {second} ({best[second]:.4f}))\n"
    for name, path in (("0", "0000_c1_0.png"), ("unknown", "0001_c1_0.png")):
        shutil.copy(pictures / "east" / path, tmp_path / f"{name}.png")
    out = run(capsys, *options, "--threshold=1", f"--output={tmp_path}/who.csv").out
    assert out == f"{tmp_path}/who.csv has 1 row\n"
    with (tmp_path / "who.csv").open(encoding="utf-8", newline="") as table:
        (row,) = csv.DictReader(table)
    assert (row["decision"], row["nearest_pid"], row["runner_up_pid"]) == ("unknown", "person 2", f"person {second}")

    # Search takes it beside a feature file.
    features = tmp_path / "f.npz"
    assert cli.main(["embed", str(pictures / "east"), model, f"--output={features}"]) == 0
    found = [f"--query={features}", "-k", "31", f"--output={tmp_path}/s.csv"]
    assert cli.main(["search", *found, "--gallery", str(file), str(features)]) == 0
    assert "s.csv has 496 rows" in capsys.readouterr().out

    assert run(capsys, "remove", file, some / "east", status=0).out == f"16 images removed: {file} has 0\n"
    assert "0 images" in run(capsys, "list", file).out


def test_a_feature_file_is_added(capsys, straight, pictures, tmp_path):
    """Images that were changed after it was written are embedded again when their folder is added, and only those."""
    file, model, features = tmp_path / "g.db", f"--model={straight[0]}", tmp_path / "f.npz"
    assert cli.main(["embed", str(pictures), model, f"--output={features}"]) == 0
    capsys.readouterr()
    changed, gone = sorted((pictures / "east").iterdir())[:2]
    content = gone.read_bytes()
    gone.unlink()
    later = features.stat().st_mtime + 10
    os.utime(changed, (later, later))
    assert run(capsys, "add", file, features).out == f"16 images added: {file} has 16\n"
    out, _ = run(capsys, "add", file, pictures, model)
    assert out.startswith("1 image added, 14 unchanged skipped")
    gone.write_bytes(content)
    assert run(capsys, "add", file, pictures, model).out.startswith("1 image added, 15 unchanged skipped")
    with Gallery(file) as gallery:
        found = gallery.features()
    whole = read(features)
    assert np.array_equal(found.path, np.sort(whole.path))
    np.testing.assert_allclose(found.feature, whole.feature[np.argsort(whole.path)], atol=1e-6)
    other = dataclasses.replace(whole, made_by=whole.made_by | {"weights": "ab" * 32})
    write(features, other)
    assert "is of another model" in run(capsys, "add", file, features, status=2).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: ACTION"),
        (["ad"], "invalid choice: 'ad'"),
        (["add", "{dir}/g.db", "{pictures}"], "is not a feature file: --model=RUN names the run that embeds it"),
        (["add", "{dir}/g.db", "{pictures}", "--modle=x"], "there is no option '--modle': did you mean --model"),
        (["add", "{dir}/no/g.db", "{pictures}", "--model={run}"], "there is no folder"),
        (["list", "{dir}/g.db"], "g.db does not exist: metabin gallery add makes one"),
        (["identify", "{dir}/g.db", "{pictures}", "--threshold=0.5"], "g.db does not exist"),
        (["remove", "{dir}/g.db", "x"], "g.db does not exist"),
    ],
)
def test_errors_are_one_sentence(capsys, straight, pictures, tmp_path, arguments, message):
    places = {"dir": tmp_path, "pictures": pictures, "run": straight[0]}
    out, err = run(capsys, *(argument.format(**places) for argument in arguments), status=2)
    assert out == "" and err.startswith("metabin gallery") and err.count("\n") == 1 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
