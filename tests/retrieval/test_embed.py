import csv
import io
import json
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image
from tiny_run import PixelNet, draw_folder, tiny_config

from metabin_jax import cli
from metabin_jax.data import cache
from metabin_jax.evaluation import embed as embed_array
from metabin_jax.retrieval import encoder as embed
from metabin_jax.retrieval import features
from metabin_jax.retrieval.encoder import embed_images
from metabin_jax.retrieval.listing import Listed, list_images
from metabin_jax.training import trained
from metabin_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_net")


def run(capsys, *arguments):
    """Exit status, stdout, stderr."""
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def open_image(path):
    with Image.open(path) as image:
        return image.copy()


def by_hand(workdir, paths):
    """Features of 32 x 32 images that need no resizing."""
    with Checkpoints(workdir, scored=False, create=False) as checkpoints:
        variables = checkpoints.restore_variables(9)
    num_ids = variables["params"]["classifier"]["kernel"].shape[1]
    pixels = np.stack([np.asarray(open_image(path).convert("RGB")) for path in paths])
    feature_ND = embed_array(PixelNet(num_ids), variables, pixels).astype(np.float64)
    return feature_ND / np.sqrt((feature_ND**2).sum(1))[:, None]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two domains in Market-1501 naming, 16 images each, and a folder of frames without labels."""
    root = draw_folder(tmp_path_factory.mktemp("own") / "größe ü", domains=("east", "west"))
    (root / "film").mkdir()
    for number in (2, 10, 1):
        shutil.copy(root / "east" / f"000{number % 4}_c1_0.png", root / "film" / f"frame {number}.png")
    return root


def test_features_of_a_folder_are_those_of_the_evaluation(capsys, straight, pictures, tmp_path):
    output = tmp_path / "f.npz"
    status, out, err = run(capsys, "embed", pictures, f"--model={straight[0]}", f"--output={output}")
    assert (status, err) == (0, "")
    found = features.read(output)
    assert out == f"35 features of {found.feature.shape[1]} numbers are in {output}\n"

    film = [pictures / "film" / f"frame {number}.png" for number in (1, 2, 10)]
    paths = [*sorted((pictures / "east").iterdir()), *film, *sorted((pictures / "west").iterdir())]
    expected = [str(path) for path in paths]
    assert found.path.tolist() == expected
    hand_ND = by_hand(straight[0], expected)
    np.testing.assert_allclose(found.feature, hand_ND, atol=1e-6)
    assert np.abs(found.feature - np.roll(hand_ND, 1, axis=0)).max() > 0.01  # the order matters
    np.testing.assert_allclose(np.linalg.norm(found.feature, axis=1), 1, atol=1e-6)
    assert found.feature.dtype == np.float32

    labels = list(zip(found.pid.tolist(), found.camid.tolist(), found.domain.tolist(), strict=True))
    assert labels[0] == ("0", 1, "east") and labels[-1] == ("3", 2, "west")
    assert labels[16:19] == [("", -1, "")] * 3
    assert {name: found.made_by[name] for name in ("run", "step", "height", "width")} == {
        "run": str(straight[0]),
        "step": 9,
        "height": 32,
        "width": 32,
    }


@pytest.mark.parametrize("batch_size", [1, 4, 35, 64])
def test_batches_do_not_show(straight, pictures, batch_size):
    run = trained.load(straight[0])
    run.config.eval.batch_size = batch_size
    images = list_images(pictures)
    good = [image.path for image in images]
    for row in (0, 6, 7, 22, len(images)):
        images.insert(row, Listed(f"/no/{row}.png", "nobody"))
    found, broken = embed.embed_images(run, images)
    assert broken == [f"/no/{row}.png" for row in (0, 6, 7, 22, 35)]
    assert found.path.tolist() == good and "nobody" not in found.pid
    np.testing.assert_allclose(found.feature, by_hand(straight[0], good), atol=1e-6)


def test_broken_images_are_left_out_and_named(capsys, straight, pictures, tmp_path):
    rows = [str(path) for path in sorted((pictures / "east").iterdir())]
    whole = (pictures / "east" / "0000_c1_0.png").read_bytes()
    for name, content in (("empty", b""), ("text", b"no picture"), ("half", whole[: len(whole) // 2])):
        (tmp_path / f"{name}.png").write_bytes(content)
    listed = ["empty.png", *rows[:3], "half.png", "text.png", rows[3], "no.png"]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in listed), encoding="utf-8")
    output = tmp_path / "f.npz"
    arguments = (f"--model={straight[0]}", f"--output={output}")
    status, out, err = run(capsys, "embed", tmp_path / "list.csv", *arguments)
    assert status == 1 and out.startswith("4 features")
    broken = ", ".join(str(tmp_path / f"{name}.png") for name in ("empty", "half", "text", "no"))
    assert err == f"4 of 8 images cannot be read and are left out: {broken}\n"
    found = features.read(output)
    assert found.path.tolist() == rows[:4]
    np.testing.assert_allclose(found.feature, by_hand(straight[0], rows[:4]), atol=1e-6)

    output.unlink()
    (tmp_path / "list.csv").write_text("path\nempty.png\nno.png\n")
    status, out, err = run(capsys, "embed", tmp_path / "list.csv", *arguments)
    assert (status, out) == (2, "") and "no image can be read, of 2; the first is" in err
    assert not output.exists()


def test_at_most_five_broken_images_are_named(capsys, straight, pictures, tmp_path):
    (tmp_path / "good.png").write_bytes((pictures / "east" / "0000_c1_0.png").read_bytes())
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"")
    status, _, err = run(capsys, "embed", tmp_path, f"--model={straight[0]}", f"--output={tmp_path / 'f.npz'}")
    assert status == 1 and err.startswith("7 of 8 images") and err.endswith(f"{tmp_path / '4.png'}, ...\n")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_embedded_as_rgb(straight, pictures, tmp_path, mode):
    picture = open_image(pictures / "east" / "0000_c1_0.png").convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    found, _ = embed.embed_images(trained.load(straight[0]), [Listed(str(path))])
    np.testing.assert_allclose(found.feature, by_hand(straight[0], [path]), atol=1e-6)


def test_images_are_resized_to_the_size_of_the_run(straight, pictures, tmp_path):
    large = open_image(pictures / "east" / "0000_c1_0.png").resize((77, 131))
    large.save(tmp_path / "a.png")
    large.resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / "by_hand.png")
    found, _ = embed.embed_images(trained.load(straight[0]), [Listed(str(tmp_path / "a.png"))])
    np.testing.assert_allclose(found.feature, by_hand(straight[0], [tmp_path / "by_hand.png"]), atol=1e-6)


def test_an_interrupted_embedding_leaves_no_file(straight, pictures, tmp_path, monkeypatch):
    def interrupted(model, variables, batches, batch_size):
        yield from embed_batches(model, variables, [next(iter(batches))], batch_size)
        raise KeyboardInterrupt

    embed_batches = embed.embed_batches
    monkeypatch.setattr(embed, "embed_batches", interrupted)
    assert cli.main(["embed", str(pictures), f"--model={straight[0]}", f"--output={tmp_path / 'f.npz'}"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_decoding_runs_ahead_in_threads_but_not_far(monkeypatch):
    decoded, threads = [], set()

    def decode(path, size):
        decoded.append(path)
        threads.add(threading.current_thread())
        return np.zeros((*size, 3), np.uint8)

    monkeypatch.setattr(embed, "decode_image", decode)
    monkeypatch.setattr(embed.os, "cpu_count", lambda: 2)
    batches = embed.read_batches([str(number) for number in range(1000)], (4, 4), 10)
    image_NHWC, broken = next(batches)
    assert image_NHWC.shape == (10, 4, 4, 3) and broken == []
    # Threads of two cores, four batches buffered and one handed out.
    time.sleep(0.3)
    assert 10 <= len(decoded) <= 10 * (1 + 4 + 2 + 1)
    assert sum(1 for _ in batches) == 99
    assert sorted(decoded, key=int) == [str(number) for number in range(1000)]
    assert threading.main_thread() not in threads


def test_a_folder_searched_in_itself_is_embedded_once(capsys, straight, pictures, monkeypatch):
    embedded = []
    monkeypatch.setattr(embed, "embed_images", lambda *given: embedded.append(1) or embed_images(*given))
    options = (f"--query={pictures}", f"--gallery={pictures}", f"--model={straight[0]}", "-k", 1)
    status, out, err = run(capsys, "search", *options)
    assert (status, err, embedded) == (0, "queries that are in the gallery and left out of their own lists: 35\n", [1])
    assert len(out.splitlines()) == 2 * 35


def test_the_decoding_is_that_of_the_cache():
    assert embed.decode_image is cache.decode_image


def test_the_digest_tells_weights_apart(straight):
    variables = trained.load(straight[0]).variables
    digest = trained._digest(variables)
    assert digest == trained._digest(dict(reversed(variables.items())))
    kernel = variables["params"]["classifier"]["kernel"].copy()
    kernel[0, 0] += 1e-6
    changed = variables | {"params": variables["params"] | {"classifier": {"kernel": kernel}}}
    assert trained._digest(changed) != digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: IMAGES, --model"),
        (["{pictures}"], "the following arguments are required: --model"),
        (["{pictures}", "--model={dir}/no"], "no does not exist: name a workdir of metabin train or a file of weights"),
        (["{pictures}", "--model={dir}/fresh"], "holds no checkpoint: train there first"),
        (["{dir}/no", "--model={run}"], "no does not exist: name a folder of images"),
        (["{dir}/empty", "--model={run}"], "empty holds no image"),
        (["{pictures}", "--model={run}", "--output={dir}/f.txt"], "f.txt: the name of a feature file ends in"),
        (["{pictures}", "--model={run}", "--output={dir}/no/f.npz"], "there is no folder"),
        (
            ["{pictures}", "--model={run}", "--strict"],
            "there is no option '--strict': choose from --help, --model, --size, --output, --overwrite",
        ),
        (["{pictures}", "--mod={run}"], "there is no option '--mod': did you mean --model?"),
    ],
)
def test_errors_are_one_sentence(capsys, straight, pictures, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "config.json").write_text(tiny_config(tmp_path).to_json())
    places = {"pictures": pictures, "dir": tmp_path, "run": straight[0]}
    before = sorted(tmp_path.iterdir())
    status, out, err = run(capsys, "embed", *(argument.format(**places) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("metabin embed: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.iterdir()) == before


def test_weights_that_are_not_finite_are_refused(straight, pictures):
    run = trained.load(straight[0])
    run.variables["params"]["backbone"]["Dense_0"]["kernel"][:] = np.nan
    with pytest.raises(ValueError, match="features are not finite: check the weights in"):
        embed.embed_images(run, list_images(pictures / "film"))


def test_from_images_to_same_or_different(capsys, straight, pictures, tmp_path):
    """The three commands in a row, against a sort in numpy."""
    gallery, threshold, table = tmp_path / "west.npz", tmp_path / "t.json", tmp_path / "r.csv"
    model = f"--model={straight[0]}"
    assert run(capsys, "embed", pictures / "west", model, f"--output={gallery}")[0] == 0
    status, out, err = run(capsys, "calibrate", gallery, "--far=0.1", f"--output={threshold}")
    assert status == 0 and out.startswith("threshold ") and "95 % interval" in out
    # The pictures of west are those of north, on which the run was trained.
    assert err.startswith("warning: 4 of 4 identities of west were trained on (0, 1, 2, 3)")
    calibrated = json.loads(threshold.read_text())
    assert (calibrated["positive_pairs"], calibrated["negative_pairs"]) == (4 * 4, 16 * 12 // 2)

    query = pictures / "west" / "0002_c1_1.png"
    arguments = (f"--query={query}", f"--gallery={gallery}", model, f"--threshold={threshold}")
    status, out, err = run(capsys, "search", *arguments, "-k", 99, f"--output={table}")
    assert status == 0 and out.splitlines()[0] == f"{table} has 15 rows of 1 query"
    assert "calibrated for 0.1 of pairs of different people above it" in out
    assert err.splitlines() == [
        "queries that are in the gallery and left out of their own lists: 1",
        "the gallery holds only 16 images: -k 99 lists all of them",
    ]
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    paths = [str(path) for path in sorted((pictures / "west").iterdir())]
    hand_ND = by_hand(straight[0], paths)
    similarity_G = hand_ND @ hand_ND[paths.index(str(query))]
    order = [row for row in np.argsort(-similarity_G).tolist() if paths[row] != str(query)]
    assert [row["path"] for row in rows] == [paths[row] for row in order]
    np.testing.assert_allclose([float(row["similarity"]) for row in rows], similarity_G[order], atol=2e-6)
    expected = ["same" if value > calibrated["threshold"] else "different" for value in similarity_G[order]]
    assert [row["decision"] for row in rows] == expected and len(set(expected)) == 2
    assert rows[0]["pid"] == str(int(paths[order[0]].rsplit("/", 1)[1][:4])) and rows[0]["domain"] == "west"

    status, out, err = run(capsys, "search", *arguments[:3], "-k", 2)
    first, second = out.splitlines()[1:]
    assert (status, out.splitlines()[0]) == (0, str(query))
    assert first.split()[:2] == ["1", f"{similarity_G[order[0]]:.4f}"] and paths[order[1]] in second
    assert "same" not in out and "different" not in out
