"""--model=FILE: a file of PyTorch weights embeds, searches, is evaluated and exported without any training."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_run import draw_folder

import metabin_jax
from metabin_jax import cli
from metabin_jax.data.augment import MEAN, STD
from metabin_jax.retrieval import features

torch = pytest.importorskip("torch", reason="the files are PyTorch's")
projects = pytest.importorskip("torch_projects")
reid_nets = pytest.importorskip("torch_reid_nets")

NETS = {
    "osnet_ain_x1_0": lambda: reid_nets.OSNet(ain=True),
    "resnet50_ibn_a": lambda: reid_nets.torchreid_resnet(ibn=True),
    "released": lambda: projects.released_mobilenet(0.25),
}
SIZE = 64, 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("own") / "pictures", domains=("east", "west"))


@pytest.fixture(scope="module", params=NETS)
def weights(request, tmp_path_factory):
    """A file, and the PyTorch net in it."""
    net = projects.randomise(NETS[request.param]())
    file = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": v for name, v in net.state_dict().items()}}, file)
    return file, net


def by_torch(net, paths):
    """Unit-length features of resized and normalised images, by the PyTorch net."""
    images = [Image.open(path).convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC) for path in paths]
    pixels = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    normalised = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    with torch.no_grad():
        found = net.float().eval()(torch.from_numpy(normalised.transpose(0, 3, 1, 2)))
    feature_ND = (found[1] if isinstance(found, tuple) else found).numpy()
    return feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_command_takes_the_file(weights, pictures, tmp_path, capsys, monkeypatch):
    file, net = weights
    size = "--size={}x{}".format(*SIZE)

    def run(*arguments):
        assert cli.main([*map(str, arguments)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    gallery = tmp_path / "gallery.npz"
    run("embed", pictures, f"--model={file}", size, f"--output={gallery}")
    found = features.read(gallery)
    expected_ND = by_torch(net, found.path)
    np.testing.assert_allclose(found.feature, expected_ND, atol=1e-4)
    assert np.abs(found.feature - expected_ND[::-1]).max() > 1e-3
    assert (found.made_by["run"], found.made_by["step"]) == (str(file), 0)

    # Everything here embeds 32 images at a time: another number would be another program to compile.
    listed = tmp_path / "found.json"
    run("search", f"--query={pictures}", f"--gallery={gallery}", f"--model={file}", size, "-k", 1, f"--output={listed}")
    cosine_NN = expected_ND @ expected_ND.T - 3 * np.eye(len(found))
    nearest = [row["path"] for row in json.loads(listed.read_text())]
    assert np.mean(found.path[cosine_NN.argmax(1)] == nearest) > 0.9  # but for ties within rounding

    np.testing.assert_allclose(metabin_jax.Encoder.load(file, SIZE)(found.path), expected_ND, atol=1e-4)

    data = [f"--config.data.path={pictures}", f"--config.data.cache_dir={tmp_path}", "--config.data.eval_domains=west"]
    data += [size, "--config.eval.batch_size=32"]
    out = run("evaluate", f"--model={file}", *data)
    (written,) = file.parent.glob("*.json")
    assert written.name.startswith(f"{file.stem}-evaluation") and json.loads(written.read_text())["targets"].keys() == {
        "west"
    }
    assert written.name in out
    assert file.name in written.with_suffix(".md").read_text()
    for path in (written, written.with_suffix(".md")):
        path.unlink()


def test_export(pictures, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the export needs onnx")
    pytest.importorskip("onnx", reason="the export needs onnx")
    torch.save(projects.randomise(reid_nets.OSNet(0.25)).state_dict(), tmp_path / "osnet.pth")
    options = [f"--model={tmp_path}/osnet.pth", "--to=onnx", f"--output={tmp_path}/osnet.onnx"]
    assert cli.main(["export", *options, "--size=64x32"]) == 0
    assert (tmp_path / "osnet.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=256"], "--size: must be HEIGHTxWIDTH in pixels, such as 256x128, each 32 or more; not '256'"),
        (["--size=16x16"], "each 32 or more; not '16x16'"),
        ([], "of no known project"),
    ],
)
def test_errors_are_one_sentence(arguments, message, pictures, tmp_path, capsys):
    torch.save({"a.weight": torch.ones(3)}, tmp_path / "a.pth")
    output = f"--output={tmp_path}/f.npz"
    assert cli.main(["embed", str(pictures), f"--model={tmp_path}/a.pth", output, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.usefixtures("quick_net")
def test_a_run_has_a_size_of_its_own(straight, pictures, tmp_path, capsys):
    output = f"--output={tmp_path}/f.npz"
    for command in (["embed", str(pictures), output], ["evaluate"], ["export", "--to=stablehlo", output]):
        assert cli.main([*command, f"--model={straight[0]}", "--size=64x32"]) == 2
        assert "a size is for files of weights: the run in" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused_by_the_name_of_their_file(pictures, tmp_path, capsys):
    state = reid_nets.OSNet(0.25).state_dict()
    state["fc.0.weight"][0, 0] = np.nan
    torch.save(state, tmp_path / "osnet.pth")
    assert cli.main(["embed", str(pictures), f"--model={tmp_path}/osnet.pth", f"--output={tmp_path}/f.npz"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"metabin embed: {tmp_path}/osnet.pth ") and "finite" in err and err.count("\n") == 1
