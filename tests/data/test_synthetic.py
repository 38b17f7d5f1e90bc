import numpy as np
import pytest

from metabin_jax.data.records import MARKET_NAME, Record
from metabin_jax.data.synthetic import DOMAIN_NAMES, DOMAINS, generate

IDS, IMAGES = 18, 6


@pytest.fixture(scope="module")
def drawn():
    """The set as arrays over [domain, id, image], and its records."""
    images, records = generate(0, ids_per_domain=IDS, images_per_id=IMAGES)
    return images.reshape(len(DOMAIN_NAMES), IDS, IMAGES, 64, 32, 3), records


def channel_means(images):
    return images.mean(axis=(-3, -2))


def coarse_feature(images):
    """[n, 64, 32, 3] -> [n, D]: the middle of the image as means over cells of 7 x 4 pixels."""
    cells = images[:, 4:60, 6:26].astype(float).reshape(-1, 8, 7, 5, 4, 3).mean(axis=(2, 4))
    return cells.reshape(len(images), -1)


def distances(feature):
    return np.array([np.linalg.norm(feature - row, axis=-1) for row in feature])


def cross_camera_rank1(feature, pid, camid):
    distance = distances(feature)
    distance[camid[:, None] == camid[None]] = np.inf
    return np.mean(pid[distance.argmin(axis=1)] == pid)


def test_images_and_records():
    images, records = generate(3, ["mall", "plaza"], ids_per_domain=12, images_per_id=4, size=(32, 16))
    assert images.shape == (2 * 12 * 4, 32, 16, 3)
    assert images.dtype == np.uint8
    assert len(records) == len(images)
    assert records[0] == Record("synthetic/mall/0000_c1_00", 0, 1, "mall", "all")
    assert records[-1] == Record("synthetic/plaza/0011_c1_03", 11, 1, "plaza", "all")  # three cameras in turn
    assert len({record.path for record in records}) == len(records)
    for record in records:
        pid, camid = MARKET_NAME.match(record.path.split("/")[2]).groups()
        assert (int(pid), int(camid)) == (record.pid, record.camid)


def test_every_identity_is_seen_by_every_camera_of_its_domain(drawn):
    _, records = drawn
    for domain in DOMAIN_NAMES:
        cameras = set(range(1, len(DOMAINS[domain].yaws) + 1))
        assert len(cameras) >= 2
        for pid in range(IDS):
            assert {r.camid for r in records if (r.domain, r.pid) == (domain, pid)} == cameras


def test_same_seed_same_images_and_another_seed_others(drawn):
    images, records = drawn
    again, again_records = generate(0, ids_per_domain=IDS, images_per_id=IMAGES)
    np.testing.assert_array_equal(again.reshape(images.shape), images)
    assert again_records == records
    other, _ = generate(1, ids_per_domain=IDS, images_per_id=IMAGES)
    same = np.all(other == again, axis=(1, 2, 3))
    assert not same.any()


def test_an_image_depends_on_its_own_domain_identity_and_number_only(drawn):
    images, _ = drawn
    few, _ = generate(0, ["street", "campus"], ids_per_domain=IDS - 5, images_per_id=IMAGES - 1)
    few = few.reshape(2, IDS - 5, IMAGES - 1, 64, 32, 3)
    for k, domain in enumerate(["street", "campus"]):
        whole = images[DOMAIN_NAMES.index(domain), : IDS - 5, : IMAGES - 1]
        np.testing.assert_array_equal(few[k], whole)
    assert np.any(few[0] != few[1], axis=(2, 3, 4)).all()  # no two of them are the same picture by accident


def test_images_of_an_identity_are_alike_but_not_equal(drawn):
    images, _ = drawn
    pid = np.repeat(np.arange(IDS), IMAGES)
    off_diagonal = ~np.eye(len(pid), dtype=bool)
    shuffled = np.random.default_rng(0).permutation(pid)
    for domain_images in images:
        distance = distances(coarse_feature(domain_images.reshape(-1, 64, 32, 3)))
        assert distance[off_diagonal].min() > 0

        def ratio(label, distance=distance):
            same = label[:, None] == label[None]
            return distance[same & off_diagonal].mean() / distance[~same].mean()

        assert ratio(pid) < 0.85
        assert ratio(shuffled) > 0.95


def test_identities_can_be_found_across_cameras_but_not_easily(drawn):
    images, records = drawn
    labels = np.array([(r.pid, r.camid) for r in records]).reshape(len(DOMAIN_NAMES), -1, 2)
    for domain_images, (pid, camid) in zip(images, labels.transpose(0, 2, 1), strict=True):
        flat = domain_images.reshape(-1, 64, 32, 3)
        assert cross_camera_rank1(coarse_feature(flat), pid, camid) > 3 / IDS
        assert cross_camera_rank1(flat.reshape(len(flat), -1).astype(float), pid, camid) < 0.6


def test_look_alikes_differ_in_lightness_which_instance_normalisation_blurs(drawn):
    """Members 0, 1 and 2 of a family wear the same hues dark, medium and light."""
    images, _ = drawn
    images = images.astype(float)
    spread = images.std(axis=(-3, -2), keepdims=True)
    normalised = (images - images.mean(axis=(-3, -2), keepdims=True)) / spread

    def contrast(pictures):
        """Lightness of the clothes, light minus dark members, in units of its scatter within identities."""
        clothes = pictures[..., 18:44, 12:20, :].mean(axis=(-3, -2, -1))
        step = clothes[:, 2::6].mean() - clothes[:, 0::6].mean()
        return step / clothes.std(axis=2).mean()

    assert contrast(images) > 2
    assert contrast(normalised) < 0.8 * contrast(images)


def test_domains_differ_in_channel_statistics_more_than_identities_of_one_domain(drawn):
    images, _ = drawn
    halves = (
        channel_means(images[:, : IDS // 2]).mean((1, 2)),
        channel_means(images[:, IDS // 2 :]).mean((1, 2)),
    )
    within = np.linalg.norm(halves[0] - halves[1], axis=-1)
    mean = channel_means(images).mean((1, 2))
    between = distances(mean)[~np.eye(len(mean), dtype=bool)]
    assert between.min() > within.max()


def test_the_target_lies_outside_the_range_of_the_sources(drawn):
    images, _ = drawn
    red, _, blue = channel_means(images).mean((1, 2)).T
    cast = blue / red
    assert cast[-1] < 0.8 * cast[:-1].min()
    assert cast[:-1].min() > 0.6  # negative control: the sources themselves stay together


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"domains": ["plaza", "moon"]}, "moon"),
        ({"domains": ["plaza", "plaza"]}, "domains"),
        ({"domains": []}, "domains"),
        ({"domains": "plaza"}, "domains"),
        ({"ids_per_domain": 0}, "ids_per_domain"),
        ({"images_per_id": 0}, "images_per_id"),
        ({"size": 64}, "size"),
        ({"size": (64, 32, 3)}, "size"),
        ({"size": (15, 32)}, "height"),
        ({"size": (64, 4)}, "width"),
    ],
)
def test_bad_arguments_are_refused(argument, named):
    with pytest.raises(ValueError, match=named) as error:
        generate(**({"seed": 0} | argument))
    assert str(error.value).endswith(".")
