import dataclasses

import pytest

from metabin_jax.data.records import Record
from metabin_jax.data.sets.catalogue import SETS, check_counts, counts


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
    with pytest.raises(ValueError, match="viper: found 1,263 images where 1,264 images are published"):
        check_counts(SETS["viper"], people[:-1])
    with pytest.raises(ValueError, match="found 631 ids where 632 ids"):
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
    with pytest.raises(ValueError, match="found 774 distractors where 775 distractors"):
        check_counts(SETS["grid"], records("grid", *pairs, *[(0, 3, "gallery")] * 774))


# {set: {split: (identities, images)}} from the papers, and from what their authors published with the sets. Query
# identities are among the gallery's.
SOURCES = {
    "cuhk01": {"all": (971, 971 * 4)},  # Li, Zhao and Wang, ACCV 2012: two images in each of two views
    "cuhk02": {"all": (971 + 306 + 107 + 193 + 239, 4 * 1_816)},  # Li and Wang, CVPR 2013: five pairs of views
    "cuhk03": {"all": (843 + 440 + 77 + 58 + 49, 14_097)},  # Li et al., CVPR 2014: five pairs, detected boxes
    "market1501": {  # Zheng et al., ICCV 2015: bounding_box_test has 19,732 images with 2,798 distractors, 3,819 junk
        "train": (751, 12_936),
        "query": (750, 3_368),
        "gallery": (750, 19_732 - 2_798 - 3_819),
    },
    # Zheng et al., ICCV 2017: 408 identities of the gallery are seen by one camera
    "dukemtmcreid": {"train": (702, 16_522), "query": (702, 2_228), "gallery": (702 + 408, 17_661)},
    "cuhk03np": {"train": (767, 7_365), "query": (700, 1_400), "gallery": (700, 5_332)},  # Zhong et al., CVPR 2017
    "cuhksysu": {"all": (11_934, 34_574)},  # Xiao et al., CVPR 2017: Person.mat
    "msmt17": {  # Wei et al., CVPR 2018: list_train and list_val, list_query, list_gallery
        "train": (1_041, 30_248 + 2_373),
        "query": (3_060, 11_659),
        "gallery": (3_060, 82_161),
    },
    "viper": {"all": (632, 2 * 632)},  # Gray et al., PETS 2007
    "prid2011": {"all": (385 + 749 - 200, 385 + 749)},  # Hirzer et al., SCIA 2011: single shot
    "grid": {"query": (250, 250), "gallery": (250, 250)},  # Loy et al., CVPR 2009: and 775 distractors
    "ilids": {"all": (119, 476)},  # Zheng et al., BMVC 2009
}


@pytest.mark.parametrize("name", SETS)
def test_every_set_has_its_published_counts(name):
    """A set of the published size passes; without its last image, or with one image's pid changed, it does not."""
    first = {"train": 100_001}
    whole = records(
        name,
        *(
            (first.get(split, 1) + number % ids, 1 + number // ids, split)
            for split, (ids, images) in SOURCES[name].items()
            for number in range(images)
        ),
        *[(0, 3, "gallery")] * {"grid": 775, "market1501": 2_798}.get(name, 0),
    )
    check_counts(SETS[name], whole)
    with pytest.raises(ValueError, match=rf"^{name}: found .* are published: the copy is incomplete"):
        check_counts(SETS[name], whole[:-1])
    with pytest.raises(ValueError, match=r"found [\d,]+ ids"):
        check_counts(SETS[name], [whole[0]._replace(pid=99_999), *whole[1:]])


@pytest.mark.parametrize("name", ["market1501", "dukemtmcreid", "cuhk03np", "msmt17"])
def test_an_image_in_another_split_is_found(name):
    published = SETS[name].published
    assert published["images"] == sum(published[f"{split} images"] for split in ("train", "query", "gallery"))
    assert published["ids"] == published["train ids"] + published["gallery ids"]
    people = records(name, (2, 1, "train"), (2, 2, "train"), (1, 1, "query"), (1, 2, "gallery"), (1, 3, "gallery"))
    data_set = dataclasses.replace(SETS[name], published={"ids": 2, "images": 5, "gallery images": 2})
    check_counts(data_set, people)
    with pytest.raises(ValueError, match=r"found 1 gallery images where 2 gallery images are published"):
        check_counts(data_set, [r._replace(split="query") if r.camid == 3 else r for r in people])


def test_prid_in_many_shots_is_told_apart():
    """The multi-shot version has the same people in more images, and cannot have the published number of them."""
    people = [Record(f"{n}.png", n % 934, 1, "prid2011", "all") for n in range(24_541)]
    with pytest.raises(
        ValueError, match=r"found 24,541 images where 1,134 .*\. These are the counts of single_shot; mult"
    ):
        check_counts(SETS["prid2011"], people)
