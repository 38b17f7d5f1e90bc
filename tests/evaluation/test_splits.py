import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from small_sets import SMALL_SETS, digest, grid, ilids, name, prid2011, viper

from experiments.draw_splits import draw
from metabin_jax.data.records import Record
from metabin_jax.data.sets.catalogue import SETS, check_counts
from metabin_jax.data.sets.splits import DRAWN, SINGLE_SHOT, split_source
from metabin_jax.evaluation import query_gallery
from metabin_jax.evaluation.protocol import target_splits

SIZES = {"viper": (316, 316), "prid2011": (100, 649), "grid": (125, 900), "ilids": (60, 60)}
# Of the image lists that the shipped splits give for the sets of small_sets.py.
GOLDEN = {
    "viper": "8a92018e63dd325c",
    "prid2011": "5bec64ff02928cbf",
    "grid": "fd48bfa17adb0636",
    "ilids": "3b96975b29128b4f",
}
every_target = pytest.mark.parametrize("target", SMALL_SETS)


def names(records, rows):
    return [name(records[row]) for row in rows]


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_sets_are_of_the_published_size():
    for target, draw_records in SMALL_SETS.items():
        check_counts(SETS[target], draw_records())


@every_target
def test_sizes_and_persons(target):
    records = SMALL_SETS[target]()
    splits = target_splits(target, records)
    assert len(splits) == 10
    for split in splits:
        query, gallery = ([records[row] for row in rows] for rows in (split.query_row, split.gallery_row))
        assert (len(query), len(gallery)) == SIZES[target]
        tested = {record.pid for record in query}
        assert len(tested) == len(query)
        for record in query:
            (match,) = [other for other in gallery if other.pid == record.pid]
            assert match.path != record.path and match.camid != record.camid
        # What else there is are distractors: persons whom no query could ever show.
        could_be_query = {
            "viper": lambda pid: True,
            "prid2011": lambda pid: pid <= 200,
            "grid": lambda pid: pid > 0,
            "ilids": lambda pid: True,
        }[target]
        assert {record.pid for record in gallery if could_be_query(record.pid)} == tested
        assert split.query_pid.tolist() == [record.pid for record in query]
        assert split.gallery_camid.tolist() == [record.camid for record in gallery]
    sides = {
        "viper": ("cam_a", "cam_b"),
        "prid2011": ("cam_a", "cam_b"),
        "grid": ("probe", "gallery"),
        "ilids": ("images", "images"),
    }[target]
    for side, rows in zip(sides, ("query_row", "gallery_row"), strict=True):
        assert {name(records[row]).split("/")[0] for split in splits for row in getattr(split, rows)} == {side}


@every_target
def test_splits_differ_and_use_everybody(target):
    splits = target_splits(target, SMALL_SETS[target]())
    assert len({tuple(split.query_pid) for split in splits}) == 10
    tested = np.concatenate([split.query_pid for split in splits])
    persons = SINGLE_SHOT[target].persons
    assert len(np.unique(tested)) > 0.98 * persons
    # Ten draws of a half: a person in 5 +- 1.6 of them.
    assert 1.3 < np.bincount(np.unique(tested, return_inverse=True)[1]).std() < 1.9


def test_images_of_a_person_in_ilids():
    """From the shipped file by hand: the first number counts the images, the second the others after the query."""
    records = ilids()
    content = json.loads((DRAWN / "ilids.json").read_text(encoding="utf-8"))
    split, drawn = target_splits("ilids", records)[3], content["splits"][3]
    for place, (position, (first, second)) in enumerate(zip(drawn["test"], drawn["images_of"], strict=True)):
        images = sorted(record for record in records if record.pid == position + 1)
        query = first % len(images)
        others = [*images[query + 1 :], *images[:query]]
        assert records[split.query_row[place]] == images[query]
        assert records[split.gallery_row[place]] == others[second % len(others)]


@every_target
def test_golden_digests(target):
    records = SMALL_SETS[target]()
    splits = target_splits(target, records)
    assert digest(records, splits) == GOLDEN[target]
    assert digest(records, splits[::-1]) != GOLDEN[target]


@every_target
def test_order_of_the_records_changes_nothing(target):
    records = SMALL_SETS[target]("/somewhere/else")
    random.Random(0).shuffle(records)
    assert digest(records, target_splits(target, records)) == GOLDEN[target]


def test_hash_seed_changes_nothing():
    script = (
        "from small_sets import SMALL_SETS, digest; from metabin_jax.evaluation.protocol import target_splits\n"
        "for target, records in SMALL_SETS.items(): print(digest(records(), target_splits(target, records())))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(GOLDEN.values())


@every_target
def test_drawing_again_gives_the_shipped_file(target):
    assert draw(target).encode() == (DRAWN / f"{target}.json").read_bytes()


def test_other_sets_have_one_split():
    records = [Record(f"{n}.jpg", n % 2, n, "market1501", ("query", "gallery")[n // 2]) for n in range(4)]
    (split,) = target_splits("market1501", records)
    for ours, expected in zip(split, query_gallery(records), strict=True):
        np.testing.assert_array_equal(ours, expected)
    (ignoring,) = target_splits("market1501", [record._replace(camid=1) for record in records], policy="ignore")
    assert len({*ignoring.query_camid, *ignoring.gallery_camid}) == 4
    with pytest.raises(ValueError, match=r"splits.json: market1501 has one split"):
        target_splits("market1501", records, "splits.json")


# Files of splits


FOREIGN = "./data/viper/VIPeR/"


def torchreid_viper(records):
    """As torchreid writes them: every split twice, the second time from view b; pids relabelled."""
    splits = []
    for number in range(10):
        ids = random.Random(number).sample(sorted({record.pid for record in records}), 316)
        a, b = (
            [
                [FOREIGN + name(record), ids.index(record.pid), camid - 1]
                for record in records
                if record.camid == camid and record.pid in ids
            ]
            for camid in (1, 2)
        )
        splits += [{"train": [], "query": a, "gallery": b}, {"train": [], "query": b, "gallery": a}]
    return splits


def test_viper_file_of_torchreid(tmp_path):
    """The directory differs, labels come from the records, and only the splits from view a count."""
    records = viper()
    content = torchreid_viper(records)
    splits = target_splits("viper", records, write(tmp_path / "splits.json", content))
    assert len(splits) == 10
    for split, listed in zip(splits, content[::2], strict=True):
        for rows, side in ((split.query_row, "query"), (split.gallery_row, "gallery")):
            assert sorted(names(records, rows)) == sorted(item[0].removeprefix(FOREIGN) for item in listed[side])
        assert split.query_pid.tolist() == split.gallery_pid.tolist() == sorted(split.query_pid)
    shipped = target_splits("viper", records)
    assert set(splits[0].query_pid) != set(shipped[0].query_pid)


def test_prid_file_of_person_numbers(tmp_path):
    test = [sorted(random.Random(number).sample(range(1, 201), 100)) for number in range(10)]
    content = [{"train": sorted({*range(1, 201)} - {*persons}), "test": persons} for persons in test]
    records = prid2011()
    splits = target_splits("prid2011", records, write(tmp_path / "splits_single_shot.json", content))
    for split, persons in zip(splits, test, strict=True):
        assert names(records, split.query_row) == [f"cam_a/person_{pid:04}.png" for pid in persons]
        in_gallery = [f"cam_b/person_{pid:04}.png" for pid in [*persons, *range(201, 750)]]
        assert names(records, split.gallery_row) == in_gallery


def ilids_file(number=0):
    """Bare file names, as for i-LIDS."""
    persons = sorted(random.Random(number).sample(range(1, 120), 60))
    return {"query": [f"{pid:04}002.jpg" for pid in persons], "gallery": [f"{pid:04}001.jpg" for pid in persons]}


def test_ilids_file_of_bare_names(tmp_path):
    records = ilids()
    (split,) = target_splits("ilids", records, write(tmp_path / "splits.json", [ilids_file()]))
    assert names(records, split.query_row) == [f"images/{file}" for file in ilids_file()["query"]]
    assert names(records, split.gallery_row) == [f"images/{file}" for file in ilids_file()["gallery"]]


def partitions(path: Path, train: list[list[int]]) -> Path:
    """As in GRID's own file: a row of cells, each a struct whose third field is a row of person numbers."""
    cells = np.empty((1, len(train)), object)
    for number, persons in enumerate(train):
        cells[0, number] = {"a": 1.0, "b": 2.0, "persons": np.array([persons], np.float64), "d": 3.0}
    scipy.io.savemat(path, {"features": np.zeros((4, 4)), "trainIdxAll": cells})
    return path


def test_official_partitions_of_grid(tmp_path):
    train = [sorted(random.Random(number).sample(range(1, 251), 125)) for number in range(10)]
    records, file = grid(), partitions(tmp_path / "features_and_partitions.mat", train)
    splits = target_splits("grid", records, file)
    assert len(splits) == 10
    for split, persons in zip(splits, train, strict=True):
        tested = sorted({*range(1, 251)} - {*persons})
        assert split.query_pid.tolist() == tested
        assert split.gallery_pid.tolist() == [0] * 775 + tested
    assert split_source("grid", file).startswith("official partitions features_and_partitions.mat (sha256 ")


def test_split_source(tmp_path):
    assert split_source("viper") == "shipped with metabin_jax"
    assert split_source("msmt17") == ""
    file = write(tmp_path / "splits.json", "[]")
    assert split_source("viper", file) == "file of splits splits.json (sha256 4f53cda18c2b)"  # sha256sum of "[]"


# Errors: one sentence each


def test_incomplete_sets_are_refused():
    with pytest.raises(ValueError, match=r"viper: found 1,263 images where 1,264 images are published"):
        target_splits("viper", viper()[1:])
    two_of_a_view = [record._replace(camid=1) if record.pid == 0 else record for record in viper()]
    with pytest.raises(ValueError, match=r"viper: 631 persons have an image on both sides where 632 belong"):
        target_splits("viper", two_of_a_view)
    # 119 persons, 476 images, but one of them in a single one.
    moved = [record._replace(pid=2) if (record.pid, record.camid) == (1, 2) else record for record in ilids()]
    with pytest.raises(
        ValueError, match=r"ilids: person 1 has one image, but one query and one for the gallery belong"
    ):
        target_splits("ilids", moved)


def bad_ilids(change):
    split = ilids_file()
    change(split)
    return [split]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            bad_ilids(lambda split: split["query"].__setitem__(3, "x/9999001.jpg")),
            r"splits.json names x/9999001.jpg, which is not among the images of ilids",
        ),
        (
            bad_ilids(lambda split: split["query"].pop()),
            r"splits.json, split 0 of ilids: 59 query and 60 gallery images where 60 and 60 belong",
        ),
        (
            bad_ilids(lambda split: split.update(gallery=split["query"])),
            r"split 0 of ilids: a person has not exactly one query and one other gallery image",
        ),
        (
            bad_ilids(lambda split: split["gallery"].__setitem__(0, split["gallery"][1][:6] + "2.jpg")),
            r"a person has not exactly one query and one other gallery image",
        ),
        ([], "holds no split of ilids"),
        ("{", "splits.json is damaged"),
        ("[" * 500 + "]" * 500, "nested too deeply"),
        ('[{"test": [1e999]}]', "1e999 is too large"),
        ('[{"test": [99999999999999999999]}]', "is too large"),
        ([[1]], "is no list of"),
        ([{"query": [1], "gallery": []}], "is no list of"),
        ([{"test": ["one"]}], "is no list of"),
        ({"query": []}, "is no list of"),
    ],
)
def test_wrong_files_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        target_splits("ilids", ilids(), write(tmp_path / "splits.json", content))


def test_wrong_partitions_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The file of splits nowhere.mat does not exist"):
        target_splits("grid", grid(), "nowhere.mat")
    with pytest.raises(ValueError, match=r"is not GRID's features_and_partitions\.mat"):
        target_splits("grid", grid(), write(tmp_path / "text.mat", "no MATLAB file " * 100))
    scipy.io.savemat(tmp_path / "other.mat", {"trainIdxAll": np.zeros((1, 10))})
    with pytest.raises(ValueError, match=r"is not GRID's features_and_partitions\.mat"):
        target_splits("grid", grid(), tmp_path / "other.mat")
    with pytest.raises(ValueError, match="126 query and 901 gallery images where 125 and 900 belong"):
        target_splits("grid", grid(), partitions(tmp_path / "short.mat", [list(range(1, 125))]))
    with pytest.raises(ValueError, match="holds the partitions of grid, not of viper"):
        target_splits("viper", viper(), tmp_path / "short.mat")
