import os
from pathlib import Path

import pytest
from miniatures import MARKET, draw

from metabin_jax.retrieval.listing import Listed, list_images


def names(found, root):
    return [os.path.relpath(image.path, root) for image in found]


def test_any_layout_in_natural_order_without_what_is_hidden(tmp_path):
    files = ["frame_10.jpg", "frame_9.jpg", "a/b/c/2.PNG", "a/b/c/10.png", "a10/1.webp", "a9/1.bmp", "zürich/é 1.jpg"]
    draw(tmp_path, *files, ".thumbs/1.jpg", "a/.x.jpg")
    (tmp_path / "notes.txt").write_text("")
    found = list_images(tmp_path)
    expected = [
        "a/b/c/2.PNG",
        "a/b/c/10.png",
        "a9/1.bmp",
        "a10/1.webp",
        "frame_9.jpg",
        "frame_10.jpg",
        "zürich/é 1.jpg",
    ]
    assert names(found, tmp_path) == expected
    assert sorted(expected) != expected  # the order of the text would be another
    assert set(found) == {Listed(str(tmp_path / name)) for name in files}  # no labels where the names give none


def test_market_names_give_labels_but_for_junk_and_distractors(tmp_path):
    draw(tmp_path / "market", *MARKET)
    draw(tmp_path / "shop", "0000_c2_1.jpg", "0012_c10.jpg", "poster.jpg")
    found = {Path(image.path).name: image[1:] for image in list_images(tmp_path)}
    assert found == {
        "0002_c1s1_000451_03.jpg": ("2", 1, "market"),
        "0002_c2s1_000501_01.jpg": ("2", 2, "market"),
        "0001_c1s1_001051_00.jpg": ("1", 1, "market"),
        "-1_c1s1_000401_03.jpg": ("", 1, "market"),
        "0000_c1s1_000151_01.jpg": ("", 1, "market"),
        "0001_c3s1_000551_00.jpg": ("1", 3, "market"),
        "0000_c2_1.jpg": ("0", 2, "shop"),  # pid 0 is a distractor in bounding_box_test only
        "0012_c10.jpg": ("12", 10, "shop"),
        "poster.jpg": ("", -1, ""),
    }


def test_a_domain_or_an_image_of_it_has_the_same_labels_as_within_its_folder(tmp_path):
    draw(tmp_path, "shop/0012_c10.jpg")
    (inside,) = list_images(tmp_path)
    assert [inside] == list_images(tmp_path / "shop") == list_images(tmp_path / "shop" / "0012_c10.jpg")


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    draw(tmp_path / "elsewhere", "1.jpg")
    draw(tmp_path / "root", "2.jpg")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    assert names(list_images(tmp_path / "root"), tmp_path) == ["root/2.jpg", "root/linked/1.jpg"]


def test_a_list_keeps_its_order_and_its_words(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("camid,path,pid\n3,b.jpg,Zoë\n,/pictures/a.jpg,-1\n0, sub/c.jpg ,007\n", encoding="utf-8-sig")
    assert list_images(table) == [
        Listed(str(tmp_path / "b.jpg"), "Zoë", 3),
        Listed("/pictures/a.jpg"),
        Listed(str(tmp_path / "sub" / "c.jpg"), "007", 0),
    ]
    table.write_text("path\nb.jpg\n")
    assert list_images(table) == [Listed(str(tmp_path / "b.jpg"))]
    table.write_text("path,pid,camid,domain,split\nb.jpg,5,1,north,query\n")
    assert list_images(table) == [Listed(str(tmp_path / "b.jpg"), "5", 1, "north")]


def test_the_distractors_of_a_list_are_nobody_as_those_of_a_folder_are(tmp_path):
    rows = ["1.jpg,0,1,a,gallery", "2.jpg,0000,2,a,gallery", "3.jpg,0,1,a,query", "4.jpg,00x,1,a,gallery"]
    (tmp_path / "list.csv").write_text("\n".join(["path,pid,camid,domain,split", *rows]))
    assert [image.pid for image in list_images(tmp_path / "list.csv")] == ["", "", "0", "00x"]


def test_a_camera_has_the_same_number_in_every_list(tmp_path):
    """A gallery may be filled from several."""

    def cameras(*names):
        rows = [f"{place}.jpg,7,{name},a" for place, name in enumerate(names)]
        (tmp_path / "list.csv").write_text("\n".join(["path,pid,camid,domain", *rows]))
        return [image.camid for image in list_images(tmp_path / "list.csv")]

    door, hall, third, unknown = cameras("door", "hall", "3", "")
    assert (third, unknown) == (3, -1) and door != hall and min(door, hall) > 2**32
    assert cameras("hall") == [hall] and cameras("3") == [3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file\na.jpg\n", "the header must have path, .* it is 'file'"),
        ("path,path\na.jpg,b.jpg\n", "the header must have path"),
        ("path\n", "lists no image"),
        ("path,pid\na.jpg\n", "line 2: the number of cells"),
        ("path,pid\n,3\n", "line 2, column path: the cell is empty"),
        (b"path\n\xff.jpg\n", "not a CSV file in UTF-8"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_sentence(tmp_path, content, message):
    table = tmp_path / "list.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        list_images(table)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no does not exist: name a folder of images, a CSV list or an image"):
        list_images(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no image .* at any depth"):
        list_images(tmp_path / "empty")


def test_a_name_that_is_no_text_is_named(tmp_path):
    try:
        draw(tmp_path, os.fsdecode(b"caf\xe9.jpg"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    with pytest.raises(ValueError, match=r"caf\\udce9.jpg' is not a path in UTF-8"):
        list_images(tmp_path)
