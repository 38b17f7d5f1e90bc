"""CSV manifests."""

import time
from pathlib import Path

import pytest
from test_records import touch

from metabin_jax.data.manifest import read_csv
from metabin_jax.data.records import Record, is_distractor
from metabin_jax.retrieval.listing import list_images


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_csv_maps_pids_per_domain_in_sorted_order(tmp_path):
    touch(tmp_path, "x/1.jpg", "x/2.jpg", "x/3.jpg", "x/4.jpg")
    path = manifest(
        tmp_path,
        "path,pid,camid,domain\n"
        f"x/1.jpg,zoë,12,shop\n{tmp_path}/x/2.jpg,anna,0,shop\nx/3.jpg,zoë,1,lab\nx/4.jpg,-1,1,lab\n",
    )
    assert read_csv(path) == [
        Record(str(tmp_path / "x/1.jpg"), 2, 12, "shop", "all", "zoë"),
        Record(str(tmp_path / "x/2.jpg"), 1, 0, "shop", "all", "anna"),
        Record(str(tmp_path / "x/3.jpg"), 1, 1, "lab", "all", "zoë"),
    ]


def test_only_the_pid_0_of_a_csv_is_nobody(tmp_path):
    """Whoever sorts first is a person like the others, and not what stands in a gallery as nobody."""
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    path = manifest(tmp_path, HEADER + "1.jpg,anna,1,a,query\n2.jpg,anna,2,a,gallery\n3.jpg,0000,2,a,gallery\n")
    assert [(record.pid, is_distractor(record)) for record in read_csv(path)] == [(1, False), (1, False), (0, True)]


def test_csv_from_a_spreadsheet(tmp_path):
    """A byte order mark, CRLF, columns in another order, blank lines and spaces around the cells."""
    touch(tmp_path, "1.jpg")
    path = manifest(tmp_path, "split,pid,path,domain,camid\r\n\r\nquery, 7 ,1.jpg,a,3\r\n", "utf-8-sig")
    assert read_csv(path) == [Record(str(tmp_path / "1.jpg"), 1, 3, "a", "query", "7")]


HEADER = "path,pid,camid,domain,split\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "header must have path, pid, each once, and may have camid, domain, split; it is ''"),
        ("path|pid|camid|domain\n", r"it is 'path\|pid\|camid\|domain'\."),
        ("path,pid,camid,domain,pid\n", "header must have path, pid"),
        ("path,pid,splt\n", r"there is a column 'splt': call it 'split' if it is that, or otherwise\."),
        ("path,id,label,cam\n", r"the columns id and label may both be the pid: call one of them pid\."),
        ("path,pid,cam,camera\n", r"the columns cam and camera may both be the camid"),
        (HEADER, "lists no image"),
        (HEADER + "1.jpg,-1,1,a,all\n", "lists no image"),
        (HEADER + "1.jpg,,1,a,all\n", "line 2, column pid: the cell is empty"),
        (HEADER + "1.jpg,1,1,,all\n", "line 2, column domain: the cell is empty"),
        (HEADER + "1.jpg,1,1,a,test\n", "line 2, column split: 'test' is none of train, query, gallery, all"),
        (HEADER + "2.jpg,1,1,a,all\n", r"line 2, column path: there is no file .*2\.jpg"),
        (HEADER + "1.jpg,1,1,a\n", "line 2: the number of cells"),
        (HEADER + "1.jpg,1,1,a,all,9\n", "line 2: the number of cells"),
    ],
)
def test_csv_errors(tmp_path, text, sentence):
    touch(tmp_path, "1.jpg")
    with pytest.raises(ValueError, match=sentence):
        read_csv(manifest(tmp_path, text))


def test_csv_in_another_encoding(tmp_path):
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        read_csv(manifest(tmp_path, "path,pid,camid,domain\nä.jpg,1,1,a\n", "latin-1"))


def test_missing_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        read_csv(tmp_path / "none.csv")


def test_numbers_of_a_manifest(tmp_path):
    touch(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text(f"path,pid,camid,domain\n1.jpg,{'9' * 30},{'9' * 18},a\n")
    assert [(r.pid, r.camid) for r in read_csv(tmp_path / "list.csv")] == [(1, 10**18 - 1)]  # any text is a pid
    for camid in ("9" * 19, "9" * 5000):
        (tmp_path / "list.csv").write_text(f"path,pid,camid,domain\n1.jpg,1,{camid},a\n")
        with pytest.raises(ValueError, match=r"list\.csv, line 2, column camid: 9+ has more than 18 digits"):
            read_csv(tmp_path / "list.csv")


def records_of(tmp_path, text, *files):
    touch(tmp_path, *files)
    return [(r.path, r.pid, r.camid, r.domain, r.split) for r in read_csv(manifest(tmp_path, text))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(("pid", "camid"), [("identity", "camera"), ("id", "cam"), ("label", "camid"), ("pid", "cam")])
def test_columns_and_delimiters_of_others(tmp_path, delimiter, pid, camid):
    text = f"date,path,{pid},{camid}\n2020,a b.jpg,zoë,7\n2021,2.jpg,anna,9\n".replace(",", delimiter)
    found = records_of(tmp_path, text, "a b.jpg", "2.jpg")
    assert found == [
        (str(tmp_path / "a b.jpg"), 2, 7, "manifest", "all"), (str(tmp_path / "2.jpg"), 1, 9, "manifest", "all")
    ]  # fmt: skip
    listed = list_images(tmp_path / "manifest.csv")
    assert [(image.pid, image.camid, image.domain) for image in listed] == [("zoë", 7, ""), ("anna", 9, "")]


def test_cameras_with_names_are_numbered_within_their_domain(tmp_path):
    text = (
        "path,pid,camid,domain\n1.jpg,1,hall,a\n2.jpg,1,door,a\n3.jpg,1,7,a\n4.jpg,1,12,b\n5.jpg,1,,b\n6.jpg,1,-1,a\n"
    )
    found = records_of(tmp_path, text, *(f"{number}.jpg" for number in range(1, 7)))
    assert [camid for _, _, camid, *_ in found] == [3, 2, 1, 12, -1, -1]


def test_paths_of_windows(tmp_path):
    text = "path,pid\nsub\\1.jpg,1\nback\\slash.jpg,2\n"
    found = records_of(tmp_path, text, "sub/1.jpg", "back\\slash.jpg")
    assert [path for path, *_ in found] == [str(tmp_path / "sub/1.jpg"), str(tmp_path / "back\\slash.jpg")]
    assert list_images(tmp_path / "manifest.csv")[0].path == str(tmp_path / "sub/1.jpg")


def test_a_hundred_thousand_rows_take_seconds(tmp_path):
    """Under 3 s of a core; the limit leaves room for a slow machine."""
    for folder in range(100):
        (tmp_path / str(folder)).mkdir()
        for number in range(10):
            (tmp_path / str(folder) / f"{number}.jpg").touch()
    rows = (f"{row % 100}/{row % 10}.jpg,person {row % 5000},{row % 6},d{row % 4}\n" for row in range(100_000))
    path = manifest(tmp_path, "path,pid,camid,domain\n" + "".join(rows))
    began = time.process_time()
    assert len(read_csv(path)) == 100_000
    assert time.process_time() - began < 10
