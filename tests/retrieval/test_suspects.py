"""Planted wrong labels are found, and right ones are left alone."""

import csv

import numpy as np
import pytest
from some_features import some_features

from metabin_jax import cli
from metabin_jax.retrieval import features, suspects

IDS, EACH, WIDTH = 8, 8, 16


def people(domain="d", seed=0):
    """Every identity is a direction, every image that and a little noise."""
    rng = np.random.default_rng(seed)
    centre = np.repeat(rng.normal(size=(IDS, WIDTH)), EACH, 0)
    feature = centre + 0.15 * rng.normal(size=centre.shape)
    return some_features(
        len(feature), feature=(feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32),
        pid=np.repeat(np.arange(IDS), EACH).astype(str), camid=np.tile(np.arange(EACH) % 2, IDS),
        domain=np.full(len(feature), domain), path=np.array([f"/{domain}/{row}.jpg" for row in range(len(feature))]),
    )  # fmt: skip


def found(one):
    return [(suspect.reason, suspect.row) for suspect in suspects.suspects(one)]


def test_right_labels_are_left_alone():
    assert found(people()) == []
    assert found(some_features(3, pid=np.array(["1"] * 3))) == found(some_features(3, pid=np.array([""] * 3))) == []


def test_a_wrong_label_is_found_by_its_neighbours():
    one = people()
    one.pid[10] = "5"
    (suspect,) = suspects.suspects(one)
    assert (suspect.reason, suspect.row, one.pid[suspect.other]) == ("neighbours", 10, "1")
    others = np.delete(np.arange(len(one)), 10)
    assert suspect.other == others[np.argmax(one.feature[others] @ one.feature[10])]
    assert suspect.similarity == pytest.approx(one.feature[10] @ one.feature[suspect.other], abs=1e-6)


def test_a_copy_under_another_identity_is_found_from_both_sides():
    one = people()
    one.feature[20] = one.feature[3]
    assert ("copy", 20) in found(one) and ("copy", 3) in found(one)
    one.pid[20] = one.pid[3]
    assert not [row for reason, row in found(one) if reason == "copy"]


def test_two_people_under_one_name_are_found():
    one = people()
    one.pid[one.pid == "7"] = "6"
    (suspect,) = suspects.suspects(one)
    assert suspect.reason == "two people"
    assert {suspect.row // EACH, suspect.other // EACH} == {6, 7}


def test_identities_of_two_domains_have_nothing_to_do_with_each_other():
    north, south = people("north"), people("south")  # the same features: copies, in another domain
    assert found(features.join([north, south])) == []
    south.pid[9] = "0"
    assert found(features.join([north, south])) == [("neighbours", IDS * EACH + 9)]


def test_the_command(capsys, tmp_path):
    one = people()
    one.pid[10] = "5"
    features.write(tmp_path / "f.npz", one)
    assert cli.main(["doctor", f"{tmp_path}/f.npz", f"--output={tmp_path}/s.csv"]) == 0
    assert f"1 doubtful label in {tmp_path}/s.csv: neighbours 1" in capsys.readouterr().out
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["reason"], row["path"], row["pid"], row["other_pid"]) == ("neighbours", "/d/10.jpg", "5", "1")
    assert cli.main(["doctor", f"{tmp_path}/f.npz", f"--output={tmp_path}/s.html"]) == 0
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "Doubtful labels: 1" in page
    assert "<p>/d/10.jpg: labelled 5, but its nearest images are labelled 1</p>" in page
    assert cli.main(["doctor", "--output=x.csv"]) == 2
    assert "--output needs the images" in capsys.readouterr().err
