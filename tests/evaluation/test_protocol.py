import pytest

from metabin_jax.data.records import Record
from metabin_jax.evaluation.protocol import query_gallery


def domain(*rows, name="shop"):
    return [Record(f"{name}/{i}.png", pid, camid, name, split) for i, (pid, camid, split) in enumerate(rows)]


def test_marked_records_keep_their_marks_and_others_stay_out():
    records = domain((1, 1, "query"), (9, 1, "train"), (1, 2, "gallery"), (2, 12, "gallery"), (5, 1, "all"))
    result = query_gallery(records)
    assert result.query_row.tolist() == [0]
    assert result.gallery_row.tolist() == [2, 3]
    assert result.gallery_pid.tolist() == [1, 2]
    assert result.gallery_camid.tolist() == [2, 12]


@pytest.mark.parametrize("split", ["all", "train"])
def test_without_marks_every_image_is_both(split):
    result = query_gallery(domain((1, 1, split), (1, 2, split), (99999, 1, split)))
    assert result.query_row.tolist() == result.gallery_row.tolist() == [0, 1, 2]
    assert result.query_camid.tolist() == result.gallery_camid.tolist() == [1, 2, 1]


def test_images_for_training_stay_out_where_there_are_others():
    result = query_gallery(domain((1, 1, "all"), (9, 1, "train"), (1, 2, "all"), (9, 2, "train")))
    assert result.query_row.tolist() == result.gallery_row.tolist() == [0, 2]


def test_identity_0_is_one_like_any_other():
    """Market-1501 marks its distractors, pid 0, as gallery; elsewhere 0 may well be a person."""
    marked = query_gallery(domain((1, 1, "query"), (0, 2, "gallery"), (1, 2, "gallery")))
    assert (marked.query_pid.tolist(), marked.gallery_pid.tolist()) == ([1], [0, 1])
    unmarked = query_gallery(domain((0, 1, "all"), (0, 2, "all"), (1, 2, "all")))
    assert unmarked.query_pid.tolist() == unmarked.gallery_pid.tolist() == [0, 0, 1]


def test_policy_ignore_numbers_the_images():
    records = domain((1, 1, "all"), (1, 1, "all"), (2, 1, "all"))
    result = query_gallery(records, "ignore")
    assert result.query_camid.tolist() == result.gallery_camid.tolist() == [0, 1, 2]


def test_an_unknown_camera_compares_the_domain_within_cameras():
    known, unknown = (domain((1, 1, "all"), (1, camid, "all"), (2, 1, "all")) for camid in (2, -1))
    assert query_gallery(unknown).query_camid.tolist() == [0, 1, 2]
    assert query_gallery(known).query_camid.tolist() == [1, 2, 1]


def test_policy_ignore_knows_an_image_listed_as_query_and_as_gallery():
    query = Record("a.png", 1, 1, "shop", "query")
    records = [query, query._replace(split="gallery"), Record("b.png", 1, 1, "shop", "gallery")]
    result = query_gallery(records, "ignore")
    assert result.query_camid.tolist() == [0]
    assert result.gallery_camid.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("records", "policy", "message"),
    [
        (domain((1, 1, "all")), "same-camera", "must be one of cross-camera, ignore, not 'same-camera'"),
        ([*domain((1, 1, "all"), name="b"), *domain((1, 1, "all"), name="a")], "ignore", r"\['a', 'b'\]"),
        ([], "ignore", "records hold none"),
        (domain((1, 1, "query")), "ignore", "domain 'shop' has no gallery image"),
        (domain((1, 1, "gallery")), "ignore", "domain 'shop' has no query image"),
    ],
)
def test_bad_input_is_named(records, policy, message):
    with pytest.raises(ValueError, match=message):
        query_gallery(records, policy)
