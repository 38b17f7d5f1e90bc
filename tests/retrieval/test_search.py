import json

import numpy as np
import pytest
from some_features import MADE_BY, some_features

from metabin_jax import cli
from metabin_jax.evaluation import distances
from metabin_jax.retrieval import features, search
from metabin_jax.retrieval.search import Match, Threshold
from metabin_jax.runtime.errors import UserError


def brute_force(query_QD, gallery_GD, k):
    """Rows and similarities, one query and one gallery image at a time; of equal ones the first comes first."""
    rows, similarities = [], []
    for query in query_QD.tolist():
        similarity = [sum(a * b for a, b in zip(query, one, strict=True)) for one in gallery_GD.tolist()]
        order = sorted(range(len(similarity)), key=lambda row: (-similarity[row], row))[:k]
        rows.append(order)
        similarities.append([similarity[row] for row in order])
    return rows, similarities


def axes(count, seed):
    """Vectors of length one whose products are exact in float32 and often equal: (+-1/2, +-1/2, +-1/2, +-1/2)."""
    return np.random.default_rng([seed]).choice([-0.5, 0.5], (count, 4)).astype(np.float32)


@pytest.mark.parametrize("blocks", [(64_000_000, 8192), (3 * 30, 4), (1, 1)])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_nearest_is_the_brute_force_with_ties(monkeypatch, blocks, k):
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", blocks[0])
    monkeypatch.setattr(distances, "_CHUNK_ROWS", blocks[1])
    query_QD, gallery_GD = axes(8, 0), axes(30, 1)
    row_QK, similarity_QK = search.nearest(query_QD, gallery_GD, k)
    rows, similarities = brute_force(query_QD, gallery_GD, k)
    assert row_QK.tolist() == rows and similarity_QK.tolist() == similarities
    assert len(np.unique(similarity_QK)) < 6  # there are ties
    reverse, _ = brute_force(query_QD, gallery_GD[::-1], k)
    assert row_QK.tolist() != [[29 - row for row in one] for one in reverse]  # and their order matters


def random_features(count, seed):
    feature = np.random.default_rng([seed]).normal(size=(count, 16)).astype(np.float32)
    return feature / np.linalg.norm(feature, axis=1, keepdims=True)


def test_similarities_are_cosines(monkeypatch):
    monkeypatch.setattr(distances, "_CHUNK_ROWS", 7)
    query_QD, gallery_GD = random_features(5, 2), random_features(40, 3)
    gallery_GD[11], gallery_GD[12] = query_QD[0], -query_QD[0]
    row_QK, similarity_QK = search.nearest(query_QD, gallery_GD, 40)
    rows, similarities = brute_force(query_QD, gallery_GD, 40)
    assert row_QK.tolist() == rows
    np.testing.assert_allclose(similarity_QK, similarities, atol=1e-6)
    assert similarity_QK.min() >= -1 and similarity_QK.max() <= 1
    assert (row_QK[0, 0], row_QK[0, -1]) == (11, 12)


def test_a_query_is_not_in_its_own_list_wherever_it_stands():
    gallery = some_features(6, feature=axes(6, 1), path=np.array(["/a", "/b", "/a", "/c", "/d", "/e"]))
    query = some_features(2, feature=gallery.feature[[0, 4]], path=np.array(["/a", "/elsewhere"]))
    for k in (2, 4, 6):
        lists = search.search(query, gallery, k)
        rows, similarities = brute_force(query.feature, gallery.feature, 6)
        own = [row for row in rows[0] if row not in (0, 2)][:k]
        assert [match.row for match in lists[0]] == own
        assert [match.row for match in lists[1]] == rows[1][:k]
        assert lists[1][0] == Match(rows[1][0], similarities[1][0])
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        search.search(query, gallery, 0)


def calibrated(folder, **changed):
    content = {
        "threshold": 0.5,
        "far_asked": 0.001,
        "far": 0.0008,
        "far_interval": [0.0004, 0.0019],
        "tpr": 0.625,
        "made_by": MADE_BY,
    }
    path = folder / "threshold.json"
    path.write_text(json.dumps(content | changed))
    return path


def test_the_decision_is_strict_and_says_how_often_it_is_wrong(tmp_path):
    gallery = some_features(3)
    matches = [Match(1, 0.75), Match(2, 0.5), Match(0, 0.25)]
    threshold = search.read_threshold(str(calibrated(tmp_path)))
    rows = list(search.rows(some_features(1), gallery, [matches], threshold))
    assert [row[-1] for row in rows] == ["same", "different", "different"]  # as in verification: above, not at
    assert rows[0] == ("/bilder/größe/0.jpg", 1, 0.75, "/bilder/größe/1.jpg", "", 0, "", "same")
    assert rows[2][3:7] == ("/bilder/größe/0.jpg", "Zoë", None, "")
    assert threshold.words == (
        "threshold 0.5000: calibrated for 0.001 of pairs of different people above it (measured 0.0008, 95 % interval"
        " 0.0004 to 0.0019), and 62.5 % of pairs of one person above it"
    )
    assert [row[-1] for row in search.rows(some_features(1), gallery, [matches], None)] == ["", "", ""]


def test_a_threshold_says_what_it_means_in_a_gallery(tmp_path):
    words = search.read_threshold(str(calibrated(tmp_path))).in_gallery(5_000)
    assert words == "\nin a gallery of 5,000 other people's images: 4 of them called the same per query (2 to 9.5)"
    assert search.read_threshold("0.5").in_gallery(5_000) == ""


def test_a_threshold_by_hand_has_no_error_rate(tmp_path):
    assert search.read_threshold("0.5") == Threshold(
        0.5, "threshold 0.5000, given by hand: its error rate is not known", None
    )
    assert "one person" not in search.read_threshold(str(calibrated(tmp_path, tpr=None))).words
    search.read_threshold("-1").check(MADE_BY)  # fits any model
    for wrong in ("1.5", "nan", "-1.01"):
        with pytest.raises(ValueError, match=f"a cosine similarity, from -1 to 1, not {wrong}"):
            search.read_threshold(wrong)


def run(capsys, *arguments):
    """Exit status, stdout, stderr."""
    status = cli.main(["search", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.fixture
def files(tmp_path):
    """A query and a gallery file of one model, and one of another."""
    made = {
        "query": some_features(2, path=np.array(["/q/1.jpg", "/q/2.jpg"])),
        "gallery": some_features(5),
        "other": some_features(5, made_by=MADE_BY | {"weights": "cd" * 32}),
        "narrow": some_features(5, 2),
    }
    for name, one in made.items():
        features.write(tmp_path / f"{name}.npz", one)
    return tmp_path


def test_files_need_no_run(capsys, files):
    status, out, err = run(capsys, f"--query={files}/query.npz", f"--gallery={files}/gallery.npz", "-k", 3)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert (lines[0], lines[4], len(lines)) == ("/q/1.jpg", "/q/2.jpg", 8)
    query, gallery = features.read(files / "query.npz"), features.read(files / "gallery.npz")
    rows, similarities = brute_force(query.feature, gallery.feature, 3)
    for line, row, similarity in zip(lines[1:4], rows[0], similarities[0], strict=True):
        assert f"{similarity:.4f}" in line and str(gallery.path[row]) in line
    zoe = next(line for line in lines if "/0.jpg" in line)
    assert zoe.endswith("/bilder/größe/0.jpg  (pid Zoë)")


def test_parquet_as_well(capsys, files):
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    features.write(files / "gallery.parquet", features.read(files / "gallery.npz"))
    outputs = [
        run(capsys, f"--query={files}/query.npz", f"--gallery={files}/gallery.{kind}") for kind in ("npz", "parquet")
    ]
    assert outputs[0] == outputs[1] and outputs[0][0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query={dir}/query.npz"], "the following arguments are required: --gallery"),
        (["--query={dir}/query.npz", "--gallery={dir}/other.npz"], "the query is of another model than the gallery"),
        (["--query={dir}/query.npz", "--gallery={dir}/no.npz"], "no.npz does not exist"),
        (["--query={dir}/query.npz", "--gallery={dir}"], "is not a feature file: --model=RUN names the run"),
        (["--query={dir}/1.jpg", "--gallery={dir}/gallery.npz"], "1.jpg is not a feature file: --model=RUN"),
        (["--query={dir}/query.npz", "--gallery={dir}/gallery.npz", "-k", "0"], "-k: must be a whole number from 1 on"),
        (["--query={dir}/query.npz", "--gallery={dir}/gallery.npz", "-k", "x"], "-k: must be a whole number from 1 on"),
        (
            ["--query={dir}/query.npz", "--gallery={dir}/gallery.npz", "--threshold={dir}/no.json"],
            "no.json does not exist: give a number, or a file that metabin calibrate wrote",
        ),
        (
            ["--query={dir}/query.npz", "--gallery={dir}/gallery.npz", "--threshold={dir}/query.npz"],
            "query.npz is damaged (",
        ),
        (
            ["--query={dir}/query.npz", "--gallery={dir}/gallery.npz", "--threshold={dir}/other.json"],
            "the threshold is of another model than the features",
        ),
        (
            ["--query={dir}/query.npz", "--gallery={dir}/gallery.npz", "--output={dir}/no/r.csv"],
            "r.csv cannot be written: there is no folder",
        ),
        (
            ["--query={dir}/query.npz", "--gallery={dir}/gallery.npz", "--output={dir}/r.txt"],
            "r.txt: the name of the output ends in .csv, .json, .parquet or .html",
        ),
    ],
)
def test_errors_are_one_sentence(capsys, files, arguments, message):
    calibrated(files, made_by=MADE_BY | {"height": 64}).rename(files / "other.json")
    before = sorted(files.iterdir())
    status, out, err = run(capsys, *(argument.format(dir=files) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("metabin search: ") and err.count("\n") == 1 and message in err
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    "changed",
    [
        {"threshold": "0.5"}, {"threshold": None}, {"threshold": 2}, {"threshold": [0.5]}, {"tpr": "1"}, {"far": -1},
        {"far_interval": [0]}, {"far_interval": 3}, {"far_asked": []}, {"made_by": None}, {"made_by": []},
        {"made_by": MADE_BY | {"weights": 3}}, {"made_by": MADE_BY | {"height": "64"}},
    ],
)  # fmt: skip
def test_a_threshold_with_a_wrong_value_is_one_sentence(tmp_path, changed):
    with pytest.raises(UserError, match=r"threshold\.json is not a threshold of metabin calibrate \("):
        search.read_threshold(str(calibrated(tmp_path, **changed)))


@pytest.mark.parametrize("text", ["1e999", "NaN", "9" * 30, "[" * 10_000, "{", ""])
def test_a_damaged_threshold_is_one_sentence(tmp_path, text):
    path = calibrated(tmp_path)
    path.write_text(path.read_text().replace("0.5", text) if text in ("NaN", "1e999") else text)
    with pytest.raises(UserError, match=r"threshold\.json is (damaged|not a threshold) .*metabin calibrate"):
        search.read_threshold(str(path))
