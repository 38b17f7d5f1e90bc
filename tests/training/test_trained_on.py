"""Evaluation and calibration name the identities that a run was trained on."""

import shutil

import pytest
from tiny_run import draw_folder, tiny_config

from metabin_jax import cli
from metabin_jax.data.manifest import read_csv
from metabin_jax.data.records import read_folder
from metabin_jax.training.workdir import describe_run, trained_on


@pytest.fixture
def run(tmp_path):
    """The workdir of a run on east and north, and the folder of its pictures, which has south and west too."""
    folder = draw_folder(tmp_path / "pictures")
    describe_run(tiny_config(folder), read_folder(folder, ("east", "north")), tmp_path / "run")
    return tmp_path / "run", folder


def images(folder, domain, pid):
    return [(str(path), domain, pid) for path in sorted(folder.glob(f"{domain}/{int(pid):04d}*"))]


def test_by_its_label_or_by_the_content_of_a_file(run):
    workdir, folder = run
    assert trained_on(workdir, images(folder, "east", "1")) == {"east": ["1"]}
    assert trained_on(workdir, images(folder, "west", "1")) == {}
    gone = [("/gone/1.png", "north", "3"), ("/gone/2.png", "north", "9"), ("/gone/3.png", "west", "3")]
    assert trained_on(workdir, gone) == {"north": ["3"]}
    (folder / "copies").mkdir()
    for new, old in (
        ("0007_c1_0", "east/0002_c2_1"),
        ("0007_c2_0", "west/0002_c2_1"),
        ("0008_c1_0", "south/0001_c1_0"),
    ):
        shutil.copy(folder / f"{old}.png", folder / "copies" / f"{new}.png")
    known = [image for pid in ("7", "8") for image in images(folder, "copies", pid)]
    assert trained_on(workdir, known) == {"copies": ["7"]}


def test_a_manifest_names_people_by_its_own_words(tmp_path):
    """The records number them anew: 17 and 23 become 1 and 2."""
    folder = draw_folder(tmp_path / "pictures", domains=("east",))
    names = ["17", 'O\'Neil ""Jo"" \\ 23']
    rows = [f'east/{pid:04d}_c1_0.png,"{name}",1,east' for pid, name in enumerate(names, start=1)]
    (folder / "list.csv").write_text("\n".join(["path,pid,camid,domain", *rows]))
    config = tiny_config(folder)
    config.data.source, config.data.path = "csv", str(folder / "list.csv")
    records = read_csv(folder / "list.csv")
    assert [record.pid for record in records] == [1, 2]
    describe_run(config, records, tmp_path / "run")
    known = ["17", 'O\'Neil "Jo" \\ 23']
    new = [("/new/1.png", "east", pid) for pid in ("1", "2", *known)]
    assert trained_on(tmp_path / "run", new) == {"east": known}


def test_a_path_may_look_like_two_columns(tmp_path):
    folder = draw_folder(tmp_path / "pictures", domains=("east",))
    (folder / "east/0001_c1_0.png").rename(folder / "east" / r"0001_c1_\t7.png")
    describe_run(tiny_config(folder), read_folder(folder), tmp_path / "run")
    copy = folder / "0009.png"
    shutil.copy(folder / "east" / r"0001_c1_\t7.png", copy)
    assert trained_on(tmp_path / "run", [(str(copy), "copies", "9")]) == {"copies": ["9"]}


def test_a_file_of_the_same_size_is_another_file(run):
    workdir, folder = run
    (folder / "copies").mkdir()
    content = bytearray((folder / "east/0002_c2_1.png").read_bytes())
    content[-1] ^= 1
    (folder / "copies/0007_c1_0.png").write_bytes(content)
    assert trained_on(workdir, images(folder, "copies", "7")) == {}


def test_a_file_of_weights_or_a_run_that_is_gone_was_trained_on_nothing_we_know(run, tmp_path):
    _, folder = run
    for model in (tmp_path / "gone", folder / "east/0002_c2_1.png"):
        assert trained_on(model, images(folder, "east", "1")) == {}


def test_commands_warn(capsys, straight, folder, tmp_path):
    """A domain of copies: three identities that were trained on and one that was not."""
    workdir, _ = straight
    copies = tmp_path / "pictures" / "copies"
    copies.mkdir(parents=True)
    for number, domain in enumerate(("east", "north", "south", "west"), start=1):
        for path in folder.glob(f"{domain}/0001*"):
            shutil.copy(path, copies / path.name.replace("0001", f"000{number}"))
    warning = (
        "warning: 3 of 4 identities of copies were trained on (1, 2, 3), so its numbers are better than on people whom "
        "the net has not seen\n"
    )
    fields = [f"--config.data.path={tmp_path}/pictures", "--config.data.eval_domains=copies"]
    calibrate = ["calibrate", str(copies), f"--model={workdir}", "--far=0.2", f"--output={tmp_path}/t.json"]
    report = ["report", f"--model={workdir}", f"--output={tmp_path}/page.html", *fields]
    for command in (["evaluate", f"--model={workdir}", *fields], calibrate, report):
        assert cli.main(command) == 0
        assert warning in capsys.readouterr().err
    fields = [f"--config.data.path={folder}", "--config.data.eval_domains=west"]
    assert cli.main(["evaluate", f"--model={workdir}", *fields]) == 0
    assert "warning" not in capsys.readouterr().err
