import dataclasses
import itertools
import json

import numpy as np
import pytest
from some_features import MADE_BY, some_features

from metabin_jax import cli
from metabin_jax.evaluation import thresholds, verification
from metabin_jax.retrieval import calibrate as module
from metabin_jax.retrieval import features, search
from metabin_jax.retrieval.calibrate import calibrate


def people(ids=6, cameras=2, per_camera=2, domains=("north", "south"), noise=1.0):
    """Every identity is a direction, every image that and noise; identities have the same names in each domain."""
    rng = np.random.default_rng([ids, cameras, per_camera])
    rows = list(itertools.product(domains, range(ids), range(cameras), range(per_camera)))
    centre = rng.normal(size=(len(domains), ids, 8))
    feature = np.stack([centre[domains.index(domain), pid] + noise * rng.normal(size=8) for domain, pid, *_ in rows])
    order = rng.permutation(len(rows))
    return some_features(
        len(rows),
        feature=(feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)[order],
        path=np.array([f"/{row}.jpg" for row in range(len(rows))]),
        pid=np.array([str(row[1]) for row in rows])[order],
        camid=np.array([row[2] for row in rows])[order],
        domain=np.array([row[0] for row in rows])[order],
    )


def pairs_by_hand(one):
    """(similarity, identity, identity, is positive) of each pair that counts, one pair at a time."""
    found = []
    for a, b in itertools.combinations(range(len(one)), 2):
        if one.domain[a] != one.domain[b]:
            continue
        same = one.pid[a] == one.pid[b]
        if not same or one.camid[a] != one.camid[b]:
            similarity = float(one.feature[a].astype(np.float64) @ one.feature[b].astype(np.float64))
            found.append((similarity, (one.domain[a], one.pid[a]), (one.domain[b], one.pid[b]), same))
    return found


@pytest.mark.parametrize("tile", [(1024, 4096), (5, 7)])
@pytest.mark.parametrize("far", [0.01, 0.1, 0.5])
def test_threshold_and_rates_are_those_of_a_loop_over_pairs(monkeypatch, tile, far):
    monkeypatch.setattr(thresholds, "_QUERY_ROWS", tile[0])
    monkeypatch.setattr(thresholds, "_GALLERY_ROWS", tile[1])
    one = people()
    result = calibrate(one, far)
    pairs = pairs_by_hand(one)
    negative = sorted((pair[0] for pair in pairs if not pair[3]), reverse=True)
    positive = [pair[0] for pair in pairs if pair[3]]
    assert (result.positive_pairs, result.negative_pairs) == (len(positive), len(negative)) == (2 * 6 * 4, 2 * 15 * 16)
    assert (result.images, result.identities, result.unlabelled) == (48, 12, 0)
    allowed = int(far * len(negative))
    assert result.threshold == pytest.approx(negative[allowed], abs=1e-6)
    assert result.far == allowed / len(negative)
    assert result.tpr == sum(value > negative[allowed] for value in positive) / len(positive)
    assert 0 < result.tpr < 1
    # Pairs across domains, which are of other people too, would have moved it.
    merged = dataclasses.replace(one, domain=np.array([""] * len(one)), pid=np.char.add(one.domain, one.pid))
    assert calibrate(merged, far).threshold != result.threshold


def test_without_any_camera_every_pair_of_one_person_counts():
    one = people()
    number = np.arange(len(one))
    pairs = pairs_by_hand(dataclasses.replace(one, camid=number))  # as if each image had a camera of its own
    result = calibrate(dataclasses.replace(one, camid=np.full(len(one), -1)), 0.1)
    assert result.positive_pairs == sum(pair[3] for pair in pairs) == 2 * 6 * 6
    assert result.unlabelled == 0
    one_known = calibrate(dataclasses.replace(one, camid=np.where(number < 24, one.camid, -1)), 0.1)
    assert one_known.unlabelled == 24


def test_one_domain_as_verification_measures_it():
    one = people(domains=("north",))
    result = calibrate(one, 0.05)
    pid = one.pid.astype(int)
    expected = verification(one.feature, one.feature, pid, pid, one.camid, one.camid, 0.05)
    assert (2 * result.positive_pairs, 2 * result.negative_pairs) == (expected.num_positive, expected.num_negative)
    assert result.threshold == pytest.approx(expected.threshold, abs=1e-6)
    assert (result.tpr, result.far) == (expected.tpr, expected.far)


def test_by_hand():
    """Four images: similarities 0.8 (one person, two cameras), and 0.6, 0.6, 0, 0 of different people."""
    feature = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.6, 0, 0.8]], np.float32)
    one = some_features(
        3,
        feature=feature,
        pid=np.array(["a", "a", "b"]),
        camid=np.array([1, 2, 1]),
    )
    # Negative pairs: 0.6 and 0.48; one of the two may be above.
    result = calibrate(one, 0.5)
    assert result.threshold == pytest.approx(0.48)
    assert (result.far, result.tpr, result.positive_pairs, result.negative_pairs) == (0.5, 1.0, 1, 2)
    assert str(result).splitlines()[0] == "threshold 0.4800, from 3 images of 2 identities (0 without labels left out)"


def test_equal_similarities_are_not_accepted():
    feature = np.array([[1, 0]] * 4, np.float32)
    one = some_features(4, feature=feature, pid=np.array(list("aabb")), camid=np.array([1, 2, 1, 2]))
    result = calibrate(one, 0.5)
    assert (result.threshold, result.far, result.tpr) == (1.0, 0.0, 0.0)


def test_intervals_are_those_of_identities_drawn_again(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 40)
    one, far = people(), 0.1
    result = calibrate(one, far)
    pairs = pairs_by_hand(one)
    rng, drawn = np.random.default_rng(0), []
    for domain in ("north", "south"):
        drawn.append((domain, rng.multinomial(6, np.full(6, 1 / 6), 40)))
    shares = {True: [], False: []}
    for resample in range(40):
        times = {(domain, str(pid)): counts[resample][pid] for domain, counts in drawn for pid in range(6)}
        for kind, found in shares.items():
            hits = whole = 0
            for similarity, first, second, same in pairs:
                if same == kind:
                    weight = times[first] if same else times[first] * times[second]
                    whole += weight
                    hits += weight * (similarity > result.threshold + 1e-7)
            found.append(hits / whole)
    np.testing.assert_allclose(result.tpr_interval, np.quantile(shares[True], [0.025, 0.975]), atol=1e-12)
    np.testing.assert_allclose(result.far_interval, np.quantile(shares[False], [0.025, 0.975]), atol=1e-12)
    assert result.far_interval[0] < result.far < result.far_interval[1]
    # Pairs taken for independent (Wilson's interval) would claim to know it much better.
    z, n, p = 1.96, result.negative_pairs, result.far
    width = 2 * z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert result.far_interval[1] - result.far_interval[0] > 1.5 * width


def test_what_has_no_labels_is_left_out():
    one = people()
    pid, camid = one.pid.copy(), one.camid.copy()
    pid[[3, 8]], camid[[8, 20]] = "", -1
    kept = np.delete(np.arange(len(one)), [3, 8, 20])
    columns = {name: getattr(one, name)[kept] for name in ("path", "feature", "pid", "camid", "domain")}
    result = calibrate(dataclasses.replace(one, pid=pid, camid=camid), 0.1)
    assert result == dataclasses.replace(calibrate(dataclasses.replace(one, **columns), 0.1), unlabelled=3)
    with pytest.raises(ValueError, match="no image has an identity: name the files"):
        calibrate(dataclasses.replace(one, pid=np.array([""] * len(one))), 0.1)


def test_one_camera_measures_the_threshold_alone():
    result = calibrate(people(cameras=1), 0.1)
    assert (result.tpr, result.tpr_interval, result.positive_pairs) == (None, None, 0)
    assert "n/a, as no identity was seen by two cameras" in str(result)


def test_too_few_pairs_for_the_rate():
    one = people(domains=("north",))  # 240 negative pairs, and so 480 ordered ones
    with pytest.raises(ValueError, match=r"0.004 is n/a: it needs 250 pairs of different people or more, .* are 240"):
        calibrate(one, 0.004)
    assert calibrate(one, 1 / 240).far == 1 / 240
    for wrong in (0, 1, np.nan):
        with pytest.raises(ValueError, match="far must be above 0 and below 1"):
            calibrate(one, wrong)


def test_what_the_command_writes_is_what_search_reads(capsys, tmp_path):
    one = people()
    features.write(tmp_path / "f.npz", one)
    output = tmp_path / "t.json"
    status = cli.main(["calibrate", str(tmp_path / "f.npz"), "--far=0.1", f"--output={output}"])
    result = calibrate(one, 0.1)
    wrong = f"in a gallery of 48 other people's images: {result.far * 48:.2g} of them called the same per query ("
    out = capsys.readouterr().out
    assert status == 0 and out.startswith(f"{result}\n{wrong}") and out.endswith(f"\nthe threshold is in {output}\n")
    assert json.loads(output.read_text()) == dataclasses.asdict(result)
    threshold = search.read_threshold(str(output))
    assert (threshold.value, threshold.made_by) == (result.threshold, MADE_BY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "t.json"]


@pytest.mark.parametrize(("more", "far"), [((), 4.8 / 48), (("--gallery-size=96",), 4.8 / 96)])
def test_false_matches_per_query_are_a_rate_of_pairs(tmp_path, more, far):
    """Among 48 images of other people 4.8 are above the threshold if one pair in ten is."""
    features.write(tmp_path / "f.npz", people())
    output = tmp_path / "t.json"
    assert cli.main(["calibrate", f"{tmp_path}/f.npz", "--far-per-query=4.8", *more, f"--output={output}"]) == 0
    assert json.loads(output.read_text()) == dataclasses.asdict(calibrate(people(), far))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: IMAGES"),
        (["{dir}"], "is not a feature file: --model=RUN names the run that embeds it"),
        (["{dir}/f.npz", "--far=1"], "--far: must be a number between 0 and 1, not '1'"),
        (["{dir}/f.npz", "--far=few"], "--far: must be a number between 0 and 1, not 'few'"),
        (["{dir}/f.npz", "--far=0.0001"], "is n/a: it needs 10,000 pairs"),
        (["{dir}/f.npz", "--far=0.1", "--far-per-query=2"], "are two ways to say one thing: give one of them"),
        (["{dir}/f.npz", "--far-per-query=48"], "--far-per-query=48 is every image of a gallery of 48: ask for less"),
        (["{dir}/f.npz", "--far-per-query=0"], "--far-per-query: must be a number above 0, not '0'"),
        (["{dir}/f.npz", "--far-per-query=1", "--gallery-size=5000"], "is n/a: it needs 5,000 pairs"),
        (["{dir}/f.npz", "--output={dir}/no/t.json"], "there is no folder"),
    ],
)
def test_errors_are_one_sentence(capsys, tmp_path, arguments, message):
    features.write(tmp_path / "f.npz", people())
    status = cli.main(["calibrate", *(argument.format(dir=tmp_path) for argument in arguments)])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("metabin calibrate: ") and err.count("\n") == 1 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]
