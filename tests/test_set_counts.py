import pytest

from metabin_jax.data.records import Record
from metabin_jax.data.sets import SETS, check_counts, counts


def records(domain: str, *labels: tuple[int, int, str]) -> list[Record]:
    return [Record(f"{number}.jpg", *label[:2], domain, label[2]) for number, label in enumerate(labels)]


MARKET = records(
    "market1501",
    (2, 1, "train"),
    (2, 2, "train"),
    (1, 1, "query"),
    (0, 1, "gallery"),
    (0, 4, "gallery"),
    (1, 3, "gallery"),
)
VIPER = records("viper", (0, 1, "all"), (873, 1, "all"), (0, 2, "all"))


def test_distractors_are_counted_apart():
    assert counts(MARKET) == {
        "ids": 2,
        "images": 4,
        "cameras": 3,
        "distractors": 2,
        "splits": {
            "gallery": {"ids": 1, "images": 1, "cameras": 1},
            "query": {"ids": 1, "images": 1, "cameras": 1},
            "train": {"ids": 1, "images": 2, "cameras": 2},
        },
    }


def test_equal_numbers_in_two_sets_are_two():
    """And pid 0 outside a gallery is a person, as in VIPeR."""
    both = counts(MARKET + VIPER)
    assert (both["ids"], both["images"], both["cameras"], both["distractors"]) == (4, 7, 5, 2)


def test_published_counts():
    """A set of VIPeR's published size passes; one image or one identity less does not."""
    people = [Record(f"{pid}_{camid}.bmp", pid, camid, "viper", "all") for pid in range(632) for camid in (1, 2)]
    check_counts(SETS["viper"], people)
    with pytest.raises(
        ValueError, match="viper: found 632 ids, 1,263 images where 632 ids, 1,264 images are published"
    ):
        check_counts(SETS["viper"], people[:-1])
    with pytest.raises(ValueError, match="found 631 ids, 1,264 images"):
        check_counts(SETS["viper"], [r._replace(pid=max(r.pid, 1)) for r in people])


def test_published_counts_of_the_paper():
    """The five sources add up to the paper's 18,530 identities and 121,765 images; PRID's views to what is in both."""
    sources = [SETS[name].published for name in ("cuhk02", "cuhk03", "market1501", "dukemtmcreid", "cuhksysu")]
    assert sum(published["ids"] for published in sources) == 18_530
    assert sum(published["images"] for published in sources) == 121_765
    assert SETS["prid2011"].published == {"ids": 385 + 749 - 200, "images": 385 + 749}
    assert SETS["grid"].published["ids"] // 2 + SETS["grid"].published["distractors"] == 900


def test_published_distractors_are_checked():
    pairs = [(pid, camid, split) for pid in range(1, 251) for camid, split in ((1, "query"), (2, "gallery"))]
    check_counts(SETS["grid"], records("grid", *pairs, *[(0, 3, "gallery")] * 775))
    with pytest.raises(ValueError, match="found 250 ids, 500 images, 774 distractors where"):
        check_counts(SETS["grid"], records("grid", *pairs, *[(0, 3, "gallery")] * 774))
