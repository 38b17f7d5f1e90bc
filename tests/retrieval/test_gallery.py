"""The gallery's file: what a kill, another process, a change or damage does to it, and who is on a picture."""

import collections
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from some_features import MADE_BY, some_features

from metabin_jax.retrieval.gallery import Gallery, Identities
from metabin_jax.retrieval.listing import Listed
from metabin_jax.runtime.errors import UserError

ROWS, BATCH, WIDTH = 5_000, 50, 16
CHILD = """
import sys, time
from pathlib import Path
from test_gallery import batches, stamps
from metabin_jax.retrieval.gallery import Gallery
from some_features import MADE_BY
file, first, last, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with Gallery(file, MADE_BY) as gallery:
    there = gallery.stamps()
    print("open", flush=True)
    def slowly():
        for place, batch in enumerate(batches([row for row in range(first, last) if f"/p/{row}.jpg" not in there])):
            if place == 1:
                print("added", flush=True)
            time.sleep(pause)
            yield batch
    gallery.add(slowly(), stamps())
"""


def stamps():
    return {f"/p/{row}.jpg": (row, 10 * row) for row in range(ROWS)}


def whole():
    rng = np.random.default_rng(0)
    feature_ND = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True)


def batches(rows):
    feature_ND = whole()
    for first in range(0, len(rows), BATCH):
        own = rows[first : first + BATCH]
        yield some_features(
            len(own), feature=feature_ND[own], path=np.array([f"/p/{row}.jpg" for row in own]),
            pid=np.array([str(row % 40) for row in own]), camid=np.array(own) % 3, domain=np.array(["d"] * len(own)),
        )  # fmt: skip


def start(file, first=0, last=ROWS, pause=0.002):
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    command = [sys.executable, "-c", CHILD, *map(str, (file, first, last, pause))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def content(file):
    """All rows in the order of their paths."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT * FROM image ORDER BY path").fetchall()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "g.db"
    with Gallery(file, MADE_BY) as gallery:
        assert gallery.add(batches(list(range(ROWS))), stamps()) == ROWS
    return content(file)


def test_kills_lose_no_feature_and_repeat_none(undisturbed, tmp_path):
    kills = int(os.environ.get("KILLS", "4"))
    rng, between = random.Random(0), []
    for _ in range(kills):
        process = start(tmp_path / "g.db", pause=0.01)
        assert process.stdout.readline() == "open\n", process.stderr.read()
        if rng.random() < 0.8:  # otherwise perhaps before the first batch
            assert process.stdout.readline() == "added\n", process.stderr.read()
        time.sleep(rng.uniform(0, 0.02 + 0.3 / kills))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Gallery(tmp_path / "g.db") as gallery:
            between.append(len(gallery.features()))
    assert between == sorted(between) and all(count % BATCH == 0 for count in between)
    assert any(0 < count < ROWS for count in between), "no kill came in the middle"
    process = start(tmp_path / "g.db", pause=0)
    assert process.communicate() == ("open\nadded\n", "") and process.returncode == 0
    assert content(tmp_path / "g.db") == undisturbed


def test_two_processes_may_add_at_a_time(undisturbed, tmp_path):
    first, second = start(tmp_path / "g.db", 0, 3_000), start(tmp_path / "g.db", 2_000, ROWS)
    for process in (first, second):
        assert process.communicate() == ("open\nadded\n", "") and process.returncode == 0
    assert content(tmp_path / "g.db") == undisturbed


def filled(file, count=6, **changed):
    gallery = Gallery(file, MADE_BY)
    one = some_features(count, **changed)
    gallery.add([one], {str(name): (1, 1) for name in one.path})
    return gallery, one


def test_features_come_back_as_they_were(tmp_path):
    gallery, one = filled(tmp_path / "g.db")
    with gallery:
        found = gallery.features()
    order = np.argsort(one.path, kind="stable")
    for name in ("path", "pid", "camid", "domain", "feature"):
        assert np.array_equal(getattr(found, name), getattr(one, name)[order]), name
    assert found.made_by == MADE_BY and found.feature.dtype == np.float32


def test_an_image_is_there_once(tmp_path):
    gallery, one = filled(tmp_path / "g.db")
    with gallery:
        changed = some_features(6, feature=-one.feature)
        gallery.add([changed], {str(path): (2, 2) for path in one.path})
        assert np.array_equal(gallery.features().feature, -one.feature)
        assert set(gallery.stamps().values()) == {(2, 2)}


def test_labels_are_set_where_they_are_known(tmp_path):
    gallery, one = filled(tmp_path / "g.db")
    with gallery:
        assert gallery.label([Listed(str(one.path[0]), "Ann", -1, ""), Listed(str(one.path[1]), "", 7, "d")]) == 2
        assert gallery.label([Listed("/elsewhere.jpg", "Ann")]) == 0
        found = gallery.features()
    assert found.pid.tolist()[:2] == ["Ann", one.pid[1]]
    assert found.camid.tolist()[:2] == [one.camid[0], 7] and found.domain.tolist()[:2] == ["", "d"]


def test_images_and_folders_are_removed(tmp_path):
    paths = ["/a/1.jpg", "/a/b/2.jpg", "/a/b%/3.jpg", "/ab/4.jpg", "/a/B/5.jpg", "/c/6.jpg"]
    gallery, _ = filled(tmp_path / "g.db", path=np.array(paths))
    with gallery:
        assert gallery.remove(["/a/b"]) == 1
        assert gallery.remove(["/a/b_", "/nothing"]) == 0
        assert gallery.remove(["/a/", "/c/6.jpg"]) == 4
        assert gallery.features().path.tolist() == ["/ab/4.jpg"]


def test_another_model_is_refused(tmp_path):
    filled(tmp_path / "g.db")[0].__exit__()
    with pytest.raises(UserError, match=r"--model is of another model than the one of .*g\.db: "):
        Gallery(tmp_path / "g.db", MADE_BY | {"weights": "cd" * 32})


def damage(path, how):
    if how == "text":
        path.write_text("path,pid\n" * 500)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        with contextlib.closing(sqlite3.connect(path)) as file, file:
            file.execute(how)


@pytest.mark.parametrize(
    "how",
    [
        "text", "cut", "empty", "PRAGMA application_id = 3", "PRAGMA user_version = 2", "DROP TABLE image",
        "UPDATE model SET made_by = '{}'", "UPDATE model SET made_by = 'no'", "DELETE FROM model",
        "UPDATE image SET feature = x'00' WHERE path LIKE '%1.jpg'",
        "UPDATE image SET feature = zeroblob(length(feature))",
        "UPDATE image SET feature = substr(feature, 5) || substr(feature, 1, 4) WHERE path LIKE '%1.jpg'",
    ],
)  # fmt: skip
def test_damage_is_one_sentence(tmp_path, how):
    filled(tmp_path / "g.db")[0].__exit__()
    damage(tmp_path / "g.db", how)
    with pytest.raises(UserError, match=r"g\.db is damaged") as error, Gallery(tmp_path / "g.db") as gallery:
        gallery.features()
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path):
    filled(tmp_path / "g.db")[0].__exit__()
    with Gallery(tmp_path / "g.db") as gallery:
        gallery._file.execute(f"PRAGMA max_page_count = {gallery._file.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(UserError, match=r"g\.db cannot grow, because the disk is full"):
            gallery.add([some_features(2000)], collections.defaultdict(lambda: (1, 1)))
        assert len(gallery) == 6 and len(gallery.features()) == 6


def test_another_process_that_never_ends_is_one_sentence(tmp_path, monkeypatch):
    filled(tmp_path / "g.db")[0].__exit__()
    monkeypatch.setattr("metabin_jax.retrieval.gallery.PATIENCE", 0)
    with contextlib.closing(sqlite3.connect(tmp_path / "g.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"g\.db is locked by another process"):
            Gallery(tmp_path / "g.db")


def test_a_gallery_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: metabin gallery add makes one"):
        Gallery(tmp_path / "g.db")
    assert list(tmp_path.iterdir()) == []


def test_the_nearest_identity_and_the_runner_up_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    count = 60
    pid, domain = rng.integers(0, 5, count).astype(str), rng.choice(["north", "south"], count)
    pid[::7] = ""
    feature_ND = rng.normal(size=(count, 8)).astype(np.float32)
    gallery = some_features(count, 8, pid=pid, domain=domain,
                            feature=feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True))  # fmt: skip
    query_QD = gallery.feature[::9] + 0.1
    query_QD /= np.linalg.norm(query_QD, axis=1, keepdims=True)
    wrong = 0
    for query_D, found in zip(query_QD, Identities(gallery).nearest(query_QD), strict=True):
        best = {}
        for row in range(count):
            if pid[row]:
                key, similarity = (pid[row], domain[row]), float(query_D @ gallery.feature[row])
                best[key] = max(best.get(key, -2), similarity)
        expected = sorted(best, key=best.get, reverse=True)
        assert [(name.pid, name.domain) for name in found] == expected[:2]
        assert [name.similarity for name in found] == pytest.approx([best[key] for key in expected[:2]], abs=1e-6)
        wrong += (found[0].pid, found[0].domain) == expected[1]
    assert wrong == 0
    with pytest.raises(UserError, match="no image of the gallery has an identity: metabin gallery label"):
        Identities(some_features(3, pid=np.array([""] * 3)))


def test_adding_keeps_labels_and_fills_in_what_is_unknown(tmp_path):
    gallery, one = filled(tmp_path / "g.db", pid=np.array(["", "Ann", "", "Bo", "Cy", "Di"]), camid=np.full(6, -1))
    first, second, third = one.path.tolist()[:3]
    with gallery:
        listed = [Listed(first, "Eve", 4, "x"), Listed(second, "Fay", 5, "x"), Listed("/elsewhere.jpg", "Gil")]
        assert gallery.label_unknown(listed) == 2
        assert gallery.label_unknown(listed) == 0
        assert gallery.label_unknown([Listed(third)]) == 0
        changed = some_features(2, path=np.array([second, third]), pid=np.array(["Hal", "Ida"]), camid=np.array([6, 7]))
        gallery.add([changed], {second: (2, 2), third: (2, 2)})
        found, names = gallery.features(), gallery.identities()
    row = {path: number for number, path in enumerate(found.path.tolist())}
    labels = {path: (found.pid[row[path]], found.camid[row[path]]) for path in (first, second, third)}
    assert labels == {first: ("Eve", 4), second: ("Ann", 5), third: ("Ida", 7)}
    assert names == dict(zip(found.path.tolist(), found.pid.tolist(), strict=True))
    assert np.array_equal(found.feature[row[third]], changed.feature[1])
