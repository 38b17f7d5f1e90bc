"""Trees of pictures as people and published sets have them; files are empty, as nothing opens them."""
# ruff: noqa: E501  (names as long as they are in reality)

import pytest
from test_records import touch

from metabin_jax.data import layouts
from metabin_jax.data.layouts import Row
from metabin_jax.runtime.errors import UserError

# Name -> files, texts of some, the layout, and what some images show.
TREES = {
    "one domain in Market-1501's folders": (
        ["bounding_box_train/0002_c1s1_000451_03.jpg", "query/0001_c2s1_1.jpg", "bounding_box_test/0000_c12s1_1.jpg"],
        {}, "Market-1501 names",
        {"query/0001_c2s1_1.jpg": ("1", "2", "ROOT", "query"), "bounding_box_test/0000_c12s1_1.jpg": ("0", "12", "ROOT", "gallery")},
    ),
    "Market-1501 as it is unpacked": (
        ["bounding_box_train/0002_c1s1_1.jpg", "query/0001_c2s1_1.jpg", "bounding_box_test/0001_c3s1_1.jpg"],
        {"readme.txt": "x", "gt_query/0001_c2s1_1_good.mat": ""}, "Market-1501 names",
        {"bounding_box_train/0002_c1s1_1.jpg": ("2", "1", "ROOT", "train")},
    ),
    "domains of one name": (
        ["a/yard/0001_c1.jpg", "b/yard/0001_c1.jpg", "b/hall/0001_c1.jpg"], {}, "Market-1501 names",
        {"a/yard/0001_c1.jpg": ("1", "1", "a/yard", "all"), "b/yard/0001_c1.jpg": ("1", "1", "b/yard", "all"), "b/hall/0001_c1.jpg": ("1", "1", "hall", "all")},
    ),
    "a folder per identity in train and test": (
        ["train/7/a.jpg", "train/8/a.jpg", "test/9/a.jpg", "query/9/b.jpg"], {}, "one folder per identity",
        {"train/7/a.jpg": ("7", "", "ROOT", "train"), "test/9/a.jpg": ("9", "", "ROOT", "gallery"), "query/9/b.jpg": ("9", "", "ROOT", "query")},
    ),
    "a folder of domains": (
        ["north/0001_c1_1.jpg", "north/0001_c2_1.jpg", "south/0001_c1_1.png"], {}, "Market-1501 names",
        {"south/0001_c1_1.png": ("1", "1", "south", "all")},
    ),
    "domains with splits": (
        ["north/query/0001_c1.jpg", "north/bounding_box_test/0001_c2.jpg"], {}, "Market-1501 names",
        {"north/query/0001_c1.jpg": ("1", "1", "north", "query")},
    ),
    "flat": (["0007_c3.jpg", "-1_c3.jpg"], {}, "Market-1501 names", {"0007_c3.jpg": ("7", "3", "ROOT", "all")}),
    "a folder per identity": (
        ["Ann Miller/1.jpg", "Ann Miller/2.JPG", "Zoë/IMG_0001.png"], {}, "one folder per identity",
        {"Zoë/IMG_0001.png": ("Zoë", "", "ROOT", "all")},
    ),
    "a folder per identity in each domain": (
        ["shop/7/a.jpg", "shop/8/a.jpg", "gate/7/a.jpg"], {}, "one folder per identity",
        {"gate/7/a.jpg": ("7", "", "gate", "all")},
    ),
    "cameras, then people": (
        ["cam01/person07/a.jpg", "cam02/person07/b.jpg"], {}, "folders of cameras and people",
        {"cam02/person07/b.jpg": ("07", "02", "ROOT", "all")},
    ),
    "people, then cameras, deep": (
        ["site A/2021/id_anna/Camera-3/x/1.jpg", "site B/2021/id_ben/camera 4/x/1.jpg"], {},
        "folders of cameras and people",
        {"site B/2021/id_ben/camera 4/x/1.jpg": ("ben", "4", "site B", "all")},
    ),
    "VeRi-776": (
        ["image_train/0001_c001_00016450_0.jpg", "image_query/0002_c002_00030600_0.jpg", "image_test/0002_c020_00030640_0.jpg"],
        {"name_train.txt": "0001_c001_00016450_0.jpg\n"}, "VeRi-776",
        {"image_test/0002_c020_00030640_0.jpg": ("2", "20", "ROOT", "gallery")},
    ),
    "MARS": (
        ["bbox_train/0001/0001C1T0001F001.jpg", "bbox_test/00-1/00-1C1T0001F001.jpg", "bbox_test/0002/0002C6T0001F002.jpg"],
        {}, "MARS",
        {"bbox_train/0001/0001C1T0001F001.jpg": ("1", "1", "ROOT", "train"), "bbox_test/0002/0002C6T0001F002.jpg": ("2", "6", "ROOT", "all")},
    ),
    "MSMT17": (
        ["train/0000/0000_000_01_0303morning_0008_0.jpg", "test/0000/0000_000_01_0303morning_0008_0.jpg",
         "test/0000/0000_001_15_0303morning_0008_1.jpg"],
        {"list_train.txt": "0000/0000_000_01_0303morning_0008_0.jpg 0\n",
         "list_query.txt": "0000/0000_000_01_0303morning_0008_0.jpg 0\n",
         "list_gallery.txt": "0000/0000_001_15_0303morning_0008_1.jpg 0\n"},
        "lists (VehicleID, VERI-Wild, MSMT17)",
        {"train/0000/0000_000_01_0303morning_0008_0.jpg": ("train/0000", "01", "ROOT", "train"),
         "test/0000/0000_000_01_0303morning_0008_0.jpg": ("test/0000", "01", "ROOT", "query"),
         "test/0000/0000_001_15_0303morning_0008_1.jpg": ("test/0000", "15", "ROOT", "gallery")},
    ),
    "VehicleID": (
        ["image/0000001.jpg", "image/0000002.jpg", "image/0000003.jpg"],
        {"train_test_split/train_list.txt": "0000001 12\n0000002 12\n", "train_test_split/test_list_800.txt": "0000003 9\n"},
        "lists (VehicleID, VERI-Wild, MSMT17)",
        {"image/0000002.jpg": ("12", "", "ROOT", "train"), "image/0000003.jpg": ("9", "", "ROOT", "all")},
    ),
    "VERI-Wild": (
        ["images/00001/000001.jpg", "images/00001/000002.jpg", "images/00002/000003.jpg"],
        {"train_test_split/train_list_start0.txt": "00001/000001.jpg 0 35\n00001/000002.jpg 0 7\n",
         "train_test_split/test_3000.txt": "00002/000003.jpg 2 35\n"},
        "lists (VehicleID, VERI-Wild, MSMT17)",
        {"images/00001/000001.jpg": ("images/00001", "35", "ROOT", "train"), "images/00002/000003.jpg": ("images/00002", "35", "ROOT", "all")},
    ),
    "wildlife-datasets": (
        ["images/lynx 1.jpg", "images/lynx 2.jpg"],
        {"metadata.csv": "image_id,path,identity,date\n1,images/lynx 1.jpg,Tove,2020\n2,images/lynx 2.jpg,Äska,2021\n"},
        "wildlife-datasets (metadata.csv)",
        {"images/lynx 2.jpg": ("Äska", "", "ROOT", "all")},
    ),
}  # fmt: skip


def plant(root, files, texts):
    touch(root, *files)
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("tree", TREES)
def test_a_layout_is_recognised(tmp_path, tree):
    files, texts, layout, expected = TREES[tree]
    root = tmp_path / "ROOT"
    plant(root, files, texts)
    found = layouts.index(root)
    assert found.layout == layout
    assert {path: found.rows[path] for path in expected} == {path: Row(*row) for path, row in expected.items()}
    missing = set(files) - set(found.rows)
    assert missing == {path for path in files if "-1" in path.split("/")[-1][:4]}
    assert sum(map(len, found.left_out.values())) == len(missing) + len(texts)


def test_the_same_people_again_beside_the_splits_are_left_out(tmp_path):
    split = [f"bounding_box_{name}/000{i}_c1s1_1.jpg" for name in ("train", "test") for i in range(1, 10)]
    again = [f"gt_bbox/000{i}_c1s1_{n}.jpg" for i in range(1, 9) for n in range(2)]  # two fifths, as in Market-1501
    plant(tmp_path / "market", [*split, *again], {})
    found = layouts.index(tmp_path / "market")
    assert set(found.rows) == set(split)
    assert found.left_out == {"the same people again, in gt_bbox": again}


def test_other_people_beside_the_splits_are_not_taken_for_copies(tmp_path):
    """They have the same numbers, and nothing says whose."""
    split = [f"bounding_box_{name}/000{i}_c1s1_1.jpg" for name in ("train", "test") for i in range(1, 10)]
    plant(tmp_path, [*split, *(f"south/000{i}_c1s1_1.jpg" for i in range(1, 9))], {})
    with pytest.raises(UserError, match="has no known layout"):
        layouts.index(tmp_path)


def test_a_folder_of_cameras_holds_the_same_people_as_the_others(tmp_path):
    plant(tmp_path / "yard", ["cam1/0001/a.jpg", "cam1/0002/a.jpg", "cam2/0001/b.jpg"], {})
    found = layouts.index(tmp_path / "yard")
    assert found.rows["cam2/0001/b.jpg"] == Row("0001", "2", "yard") and found.rows["cam1/0002/a.jpg"].camid == "1"
    plant(tmp_path / "gates", ["Camden/0001/a.jpg", "Camden/0002/a.jpg"], {})
    assert layouts.index(tmp_path / "gates").rows["Camden/0001/a.jpg"] == Row("0001", "", "Camden")


@pytest.mark.parametrize("name", ["Camila", "Cameron", "Cami", "CAMILA", "camp", "cameras"])
def test_a_person_may_be_called_like_a_camera(tmp_path, name):
    plant(tmp_path / "crew", ["Ann/1.jpg", "Idris/1.jpg", f"{name}/1.jpg"], {})
    assert layouts.index(tmp_path / "crew").rows[f"{name}/1.jpg"] == Row(name, "", "crew")


@pytest.mark.parametrize(
    ("folder", "camid"),
    [("cam1", "1"), ("CAM_a", "a"), ("Camera Obscura", "Obscura"), ("camNorth", "North"), ("cameraFront", "Front")],
)
@pytest.mark.parametrize(("person", "pid"), [("person01", "01"), ("personA", "A"), ("idAnna", "Anna"), ("ID-7b", "7b")])
def test_names_of_cameras_and_people(tmp_path, folder, camid, person, pid):
    plant(tmp_path / "crew", [f"{folder}/{person}/1.jpg"], {})
    assert layouts.index(tmp_path / "crew").rows == {f"{folder}/{person}/1.jpg": Row(pid, camid, "crew")}


def test_distractors_of_mars_are_nobody(tmp_path):
    plant(tmp_path, ["bbox_train/0001/0001C1T0001F001.jpg", "bbox_test/0000/0000C1T0001F001.jpg"], {})
    assert set(layouts.index(tmp_path).rows) == {"bbox_train/0001/0001C1T0001F001.jpg"}


@pytest.mark.parametrize(
    "files", [["cam1/frame 1.jpg", "cam2/frame 2.jpg"], ["images/1.jpg", "data/2.jpg"], ["train/a.jpg", "test/b.jpg"]]
)
def test_folders_that_are_no_identities_are_not_taken_for_any(tmp_path, files):
    plant(tmp_path, files, {})
    with pytest.raises(UserError, match="has no known layout"):
        layouts.index(tmp_path)


def test_a_template(tmp_path):
    plant(tmp_path, ["shop/cam3/ann_2020.jpg", "shop/cam3/ann_b_2021.jpg", "gate/cam10/7_x.jpg", "odd.jpg"], {})
    found = layouts.index(tmp_path, "{domain}/cam{camid}/{pid}_{}.jpg")
    assert found.rows == {
        "gate/cam10/7_x.jpg": Row("7", "10", "gate"),
        "shop/cam3/ann_2020.jpg": Row("ann", "3", "shop"),
        "shop/cam3/ann_b_2021.jpg": Row("ann", "3", "shop"),
    }
    assert found.left_out == {"names of another layout": ["odd.jpg"]}
    assert layouts.index(tmp_path, "{domain}/{}/{pid}_{}").rows["shop/cam3/ann_2020.jpg"] == Row("ann", "", "shop")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{name}/{pid}.jpg", r"\{name\} is none of domain, pid, camid, split, each once"),
        ("{pid}/{pid}.jpg", r"\{pid\} is none of"),
        ("{domain}/{}.jpg", r"it must have \{pid\}"),
        ("{pid}/{camid.jpg", r"it must have \{pid\}, and each \{ its \}"),
        ("{pid}/x_{}.png", r"as in .*: say what its parts are|has no known layout"),
    ],
)
def test_a_template_that_cannot_work(tmp_path, template, words):
    plant(tmp_path, ["a/1.jpg", "b/1.jpg"], {})
    with pytest.raises(UserError, match=words):
        layouts.index(tmp_path, template)


def test_what_is_not_understood_gets_a_template_to_start_from(tmp_path):
    plant(tmp_path, ["x.jpg", "deep/down/y z.jpg", "notes.txt"], {})
    with pytest.raises(UserError, match=r"has no known layout, as in .*\.jpg: .*--template='\{pid\}_\{\}'"):
        layouts.index(tmp_path)
    with pytest.raises(UserError, match="holds no image"):
        layouts.index((tmp_path / "deep" / "empty").mkdir(parents=True) or tmp_path / "deep" / "empty")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        layouts.index(tmp_path / "x.jpg")
