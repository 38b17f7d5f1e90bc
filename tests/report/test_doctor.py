"""What the report says of data that is right and of data that is not."""

import platform

import numpy as np
import pytest
from miniatures import MARKET, draw
from PIL import Image

from metabin_jax import cli
from metabin_jax.report import doctor
from metabin_jax.report.doctor import examine


def report(path):
    return list(examine(path))


def found(lines, text):
    (line,) = [line for line in lines if text in line]
    return line


def test_a_published_set_is_named_and_compared_with_its_counts(tmp_path):
    root = draw(tmp_path / "Market-1501-v15.09.15", *MARKET)
    lines = report(tmp_path)
    assert lines[:2] == [
        f"market1501 in {root}",
        "  market1501: found 2 ids, 4 images, 1 distractors, 1 train ids, 2 train images, 1 query ids, 1 query images, "
        "1 gallery ids, 1 gallery images where 1,501 ids, 29,419 images, 2,798 distractors, 751 train ids, "
        "12,936 train images, 750 query ids, 3,368 query images, 750 gallery ids, 13,115 gallery images are published: "
        "the copy is incomplete, changed, or of another version.",
    ]
    assert "market1501, train: 1 ids, 2 images, 2 cameras" in lines
    assert "market1501: 1 gallery images of pid 0, which match nobody" in lines
    assert "market1501: 1 of 1 queries have a valid match" in lines
    assert not [line for line in lines if "more than once" in line or "as published" in line]


def test_a_query_of_pid_0_is_told(tmp_path):
    """Persons of one's own may be numbered from 0; in a gallery that is Market-1501's mark for nobody."""
    draw(tmp_path / "shop", *MARKET)
    assert not any("queries are of pid 0" in line for line in report(tmp_path))
    query = draw(tmp_path / "shop", "query/0000_c1_1.jpg") / "query/0000_c1_1.jpg"
    assert f"  but 1 queries are of pid 0, so give that person another number: {query}" in report(tmp_path)


def test_what_stands_beside_a_set_is_named(tmp_path):
    """A folder of domains, one of which has the name of a set, is not examined as a whole."""
    draw(tmp_path / "cuhk03-np/detected", *MARKET)
    assert not any("not looked at" in line for line in report(tmp_path))
    draw(tmp_path / "shop", "0001_c1_1.jpg")
    (tmp_path / ".hidden").mkdir()
    assert report(tmp_path)[1] == f"  not looked at: shop in {tmp_path}, as no set has such a name"
    assert not any("not looked at" in line for line in report(tmp_path / "cuhk03-np"))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none does not exist: name a data set, a folder"):
        report(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "files"),
    [("cuhk03", ["cuhk-03.mat"]), ("cuhksysu", ["annotation/Person.mat", "Image/SSM/s1.jpg"])],
)
def test_a_set_as_it_was_published_is_named(tmp_path, name, files):
    for file in files:
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).touch()
    assert report(tmp_path) == [
        f"{name} in {tmp_path / name}, as it was published: run metabin prepare, which extracts its images"
    ]


def test_the_new_protocol_is_examined(tmp_path):
    files = ("bounding_box_train/0001_c1_1.png", "query/0002_c1_1.png", "bounding_box_test/0002_c2_3.png")
    draw(tmp_path / "cuhk03-np/detected", *files)
    lines = report(tmp_path)
    assert lines[0] == f"cuhk03np in {tmp_path / 'cuhk03-np/detected'}"
    assert "found 2 ids, 3 images, 1 train ids, " in lines[1]
    assert "cuhk03np: 1 of 1 queries have a valid match" in lines


def test_a_complete_set_is_called_complete(tmp_path, monkeypatch):
    from metabin_jax.data.sets.catalogue import SETS

    monkeypatch.setitem(vars(SETS["market1501"]), "published", {"ids": 2, "images": 4})
    draw(tmp_path / "market1501", *MARKET)
    assert report(tmp_path)[1] == "  complete: 2 ids, 4 images, as published"


def test_queries_without_a_match_are_counted_by_their_reason(tmp_path):
    names = ("0001_c1_1.png", "0001_c2_1.png", "0002_c1_1.png", "0003_c1_1.png", "0003_c1_2.png")
    draw(tmp_path / "shop", *names)
    lines = report(tmp_path)
    assert lines[0] == f"folder of domains {tmp_path}"
    assert "shop: 2 of 5 queries have a valid match" in lines
    alone = found(lines, "no other image of their identity")
    assert alone.startswith("  1 have none") and alone.endswith("0002_c1_1.png")
    one_camera = found(lines, "only their own camera")
    assert one_camera.startswith("  2 have none") and "0003_c1_1.png, " in one_camera


def test_a_query_outside_the_gallery_needs_one_image_there(tmp_path):
    draw(tmp_path / "shop", "query/0001_c1_1.png", "bounding_box_test/0001_c2_1.png", "query/0002_c1_1.png")
    assert found(report(tmp_path), "no other image").endswith("0002_c1_1.png")


def test_a_domain_without_a_gallery_is_said_to_have_none(tmp_path):
    draw(tmp_path / "shop", "query/0001_c1_1.png")
    assert "shop cannot be evaluated: domain 'shop' has no gallery image: mark some, or mark none at all." in report(
        tmp_path
    )


def test_truncated_and_empty_jpegs_are_named(tmp_path):
    """And those of unusual colours are not."""
    root = tmp_path / "ilids"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (root / "images").mkdir(parents=True)
    for number, mode in enumerate(("L", "RGB", "CMYK"), start=1):
        Image.fromarray(pixels).convert(mode).save(root / f"images/000{number}001.JPG")
    whole = (root / "images/0002001.JPG").read_bytes()
    (root / "images/0002002.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "images/0003002.jpg").write_bytes(b"")
    broken = found(report(tmp_path), "of them broken")
    assert broken.startswith(f"5 images, 2 of them broken: {root / 'images/0002002.jpg'} (")
    assert "truncated" in broken and broken.endswith(f"{root / 'images/0003002.jpg'} (empty)")


def test_broken_and_duplicate_images_are_named(tmp_path):
    shop = draw(tmp_path / "shop", *(f"{pid:04d}_c{camid}_1.png" for pid in (1, 2, 3, 4) for camid in (1, 2)))
    (shop / "0001_c1_1.png").write_bytes(b"")
    whole = (shop / "0001_c2_1.png").read_bytes()
    (shop / "0001_c2_1.png").write_bytes(whole[:40])
    (shop / "0002_c2_1.png").write_bytes((shop / "0002_c1_1.png").read_bytes())
    (shop / "0004_c1_1.png").write_bytes((shop / "0003_c1_1.png").read_bytes())
    lines = report(tmp_path)
    broken = found(lines, "of them broken")
    assert broken.startswith(
        f"8 images, 2 of them broken: {shop / '0001_c1_1.png'} (empty), {shop / '0001_c2_1.png'} ("
    )
    same = found(lines, "more than once")
    assert same.startswith("2 images") and f"{shop / '0002_c1_1.png'} = {shop / '0002_c2_1.png'}" in same
    wrong = found(lines, "different identities")
    assert wrong.startswith("1 of these") and "0003_c1_1.png" in wrong and "0002" not in wrong


def test_a_manifest_is_examined_too(tmp_path, capsys):
    Image.new("RGB", (2, 4)).save(tmp_path / "ä.png")
    manifest = tmp_path / "all.csv"
    manifest.write_text("path,pid,camid,domain\nä.png,7,1,shop\n", encoding="utf-8")
    assert cli.main(["doctor", str(manifest)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"CSV manifest {manifest}\nshop, all: 1 ids, 1 images, 1 cameras\n")
    assert out.endswith("1 images, 0 of them broken\n")


def test_two_paths_are_one_too_many(capsys):
    assert cli.main(["doctor", "a", "b"]) == 2
    assert capsys.readouterr().err == "metabin doctor: unrecognized arguments: b (see metabin doctor --help)\n"


def test_what_is_none_of_these_is_one_sentence(tmp_path, capsys):
    assert cli.main(["doctor", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nothing" in error


def test_what_a_terminal_would_obey_is_written_out(tmp_path, capsys):
    folder = tmp_path / "pictures" / "yard\x1b[31m"
    draw(folder, "0001_c1_\x1b]0;x\x07.png", "0002_c1_\u202e.png")
    (folder / "0003_c1_\x1b[2J.png").write_bytes(b"broken")
    assert cli.main(["doctor", str(tmp_path / "pictures")]) == 0
    out = capsys.readouterr().out
    assert not set("\x1b\x07\u202e") & set(out)
    assert r"yard\x1b[31m" in out and r"0003_c1_\x1b[2J.png" in out
    assert cli.main(["doctor", str(tmp_path / "no\x1b[31m")]) == 2
    assert r"no\x1b[31m does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("version", "warned"), [("0.10.2", True), ("0.12.0.1", False)])
def test_without_a_path_the_versions_and_their_known_fault_are_told(capsys, monkeypatch, version, warned):
    found = doctor.environment()
    versions = found["versions"] | {"jaxlib": version}
    monkeypatch.setattr(doctor, "environment", lambda: found | {"versions": versions})
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"jaxlib {version}" in out and f"Python {platform.python_version()}" in out and "devices: cpu" in out.lower()
    assert ("jaxlib 0.10.2 has a known fault: on CPUs" in out) == warned
