"""`metabin index` on what a disk may hold: links, folders and names that cannot be read, places of the manifest."""

import csv
import os
from pathlib import Path

import pytest
from test_layouts import plant

from metabin_jax import cli
from metabin_jax.data import layouts
from metabin_jax.data.manifest import read_csv
from metabin_jax.retrieval.listing import list_images


def test_links_to_folders_are_followed_once(tmp_path):
    plant(tmp_path / "elsewhere", ["0001_c1.jpg"], {})
    plant(tmp_path / "pictures", ["north/0002_c1.jpg"], {})
    (tmp_path / "pictures/south").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "pictures/south/back").symlink_to(tmp_path / "pictures", target_is_directory=True)
    (tmp_path / "pictures/latest").symlink_to("north", target_is_directory=True)  # sorts before it
    assert set(layouts.index(tmp_path / "pictures").rows) == {"north/0002_c1.jpg", "south/0001_c1.jpg"}


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    plant(tmp_path, ["north/0002_c1.jpg", "south/0001_c1.jpg"], {})
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("south"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = layouts.index(tmp_path)
    assert set(found.rows) == {"north/0002_c1.jpg"}
    assert found.left_out == {"folders that cannot be read": [str(tmp_path / "south")]}
    assert len(list_images(tmp_path)) == 1
    assert f"1 folder cannot be read and left out: {tmp_path / 'south'}" in capsys.readouterr().err


def test_names_that_are_no_text_are_left_out_and_counted(tmp_path):
    plant(tmp_path / "crew", ["Ann/1.jpg", "Ben/1.jpg"], {})
    (tmp_path / "crew/Ann" / os.fsdecode(b"caf\xe9.jpg")).touch()
    assert cli.main(["index", str(tmp_path / "crew"), f"--output={tmp_path / 'p.csv'}"]) == 0
    assert len(layouts.index(tmp_path / "crew").left_out["names that are not UTF-8"]) == 1
    assert len(read_csv(tmp_path / "p.csv")) == 2


@pytest.mark.parametrize(("here", "named"), [("crew", "."), ("crew/Ann", "..")])
def test_the_folder_in_which_one_stands_has_its_name(tmp_path, monkeypatch, here, named):
    plant(tmp_path / "crew", ["Ann/1.jpg", "Ben/1.jpg"], {})
    monkeypatch.chdir(tmp_path / here)
    assert cli.main(["index", named, f"--output={tmp_path / 'p.csv'}"]) == 0
    assert [record.domain for record in read_csv(tmp_path / "p.csv")] == ["crew", "crew"]


def test_a_manifest_behind_a_link_finds_its_pictures(tmp_path):
    """The system follows ".." from where the link leads."""
    plant(tmp_path / "crew", ["Ann/1.jpg", "Ben/1.jpg"], {})
    (tmp_path / "scratch/deep/x").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "scratch/deep/x", target_is_directory=True)
    output = tmp_path / "out/p.csv"
    assert cli.main(["index", str(tmp_path / "crew"), f"--output={output}"]) == 0
    pictures = [str(tmp_path / "crew" / name) for name in ("Ann/1.jpg", "Ben/1.jpg")]
    assert [os.path.realpath(record.path) for record in read_csv(output)] == pictures
    assert [image.path for image in list_images(output)] == pictures


def test_a_manifest_moves_with_its_pictures_also_behind_a_link(tmp_path):
    plant(tmp_path / "scratch/crew", ["Ann/1.jpg", "Ben/1.jpg"], {})
    (tmp_path / "data").symlink_to(tmp_path / "scratch", target_is_directory=True)
    assert cli.main(["index", str(tmp_path / "data/crew"), f"--output={tmp_path / 'data/p.csv'}"]) == 0
    (tmp_path / "scratch").rename(tmp_path / "moved")
    assert len(read_csv(tmp_path / "moved/p.csv")) == 2


def test_the_command_writes_what_the_other_commands_read(tmp_path, capsys):
    root = tmp_path / "my pictures"
    plant(root, ["Ann/1.jpg", "Ann/2.jpg", "Ben/1.jpg", ".hidden.jpg", "Ben/notes.txt", "Ben/clip.mp4"], {})
    output = tmp_path / "out" / "p.csv"
    output.parent.mkdir()
    assert cli.main(["index", str(root), f"--output={output}"]) == 0
    out = capsys.readouterr().out
    assert "one folder per identity: 3 images of 2 identities, 0 cameras" in out
    assert "images without a camera, which evaluation compares with all others: 3" in out
    assert "Ann/1.jpg  ->  identity Ann, camera ?, domain my pictures, split all" in out
    for words in (
        "hidden files: 1 (.hidden.jpg)",
        "files of the type .txt: 1",
        "files of the type .mp4: 1 (Ben/clip.mp4)",
    ):
        assert f"left out, {words}" in out
    with output.open(encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [
            f"../my pictures/{n}" for n in ("Ann/1.jpg", "Ann/2.jpg", "Ben/1.jpg")
        ]
    records = read_csv(output)
    assert [(r.pid, r.camid, r.domain) for r in records] == [
        (1, -1, "my pictures"),
        (1, -1, "my pictures"),
        (2, -1, "my pictures"),
    ]
    assert [os.path.normpath(r.path) for r in records] == [
        str(root / n) for n in ("Ann/1.jpg", "Ann/2.jpg", "Ben/1.jpg")
    ]
    assert cli.main(["index", str(root), f"--output={output}"]) == 2
    assert "exists: give --overwrite" in capsys.readouterr().err
    assert cli.main(["index", str(tmp_path / "no"), f"--output={output}", "--overwrite"]) == 2
    assert Path(output).read_text(encoding="utf-8").startswith("path,pid")
