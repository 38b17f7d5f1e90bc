"""What a `metabin prepare` that fails says and leaves behind."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from miniatures import MARKET, draw
from PIL import Image
from test_prepare import VIPER, small_folder, version

from metabin_jax import cli
from metabin_jax.data import cache, dataset
from metabin_jax.data.sets import prepare, prepared
from metabin_jax.runtime.errors import UserError


def refused(capsys, *arguments) -> str:
    """The sentence of a `metabin prepare` that must fail with exit status 2."""
    assert cli.main(["prepare", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("metabin prepare: ") and err.count("\n") == 1, err
    return err


def not_prepared(data_dir: Path, domain: str) -> bool:
    """Nothing of its name is there, and reading says so."""
    with pytest.raises(FileNotFoundError, match=rf"'{domain}' is not prepared in .* run metabin prepare "):
        prepared.read(data_dir, [domain])
    return not version(domain, data_dir).exists()


def test_broken_images_are_named_and_leave_nothing(raw, data_dir, capsys):
    small_folder(raw)
    for number in range(6):
        (raw / "yard" / f"0009_c1_{number}.jpg").write_bytes(b"no image")
    err = refused(capsys, "folder", f"--manual_dir={raw}", f"--data_dir={data_dir}")
    assert "6 of 14 images are broken; repair or remove: " in err
    assert [f"0009_c1_{number}.jpg" in err for number in range(6)] == [True] * 5 + [False]
    assert not_prepared(data_dir, "yard")
    for path in raw.rglob("*.jpg"):
        path.unlink()
    prepare.prepare("folder", raw, data_dir)
    assert len(prepared.read(data_dir, ["yard"])) == 8


def test_interrupted(raw, data_dir, monkeypatch):
    small_folder(raw)
    upright, opened = cache.upright, []

    def interrupted(file):
        opened.append(file)
        if len(opened) > 5:
            raise KeyboardInterrupt
        return upright(file)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "upright", interrupted)
        prepare.prepare("folder", raw, data_dir)
    assert not_prepared(data_dir, "yard")
    assert not list((data_dir / "reid/yard").iterdir())
    prepare.prepare("folder", raw, data_dir)
    assert len(prepared.read(data_dir, ["yard"])) == 8


FATE = """
import os, resource, signal, sys
from metabin_jax import cli
from metabin_jax.data import cache
{fate}
sys.exit(cli.main(["prepare", "folder", "--manual_dir={raw}", "--data_dir={data_dir}"]))
"""
KILLED = """
left = iter(range(5))
cache.upright = lambda file: next(left, None) is not None or os.kill(os.getpid(), signal.SIGKILL)
"""
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"


@pytest.mark.parametrize(("fate", "status", "sentence"), [(KILLED, -9, ""), (FULL, 2, "cannot write yard: ")])
def test_killed_or_out_of_space(raw, data_dir, fate, status, sentence):
    small_folder(raw)
    for path in (raw / "yard").iterdir():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    script = FATE.format(fate=fate, raw=raw, data_dir=data_dir)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (status, "")
    assert sentence in result.stderr and result.stderr.count("\n") == bool(sentence)
    assert not_prepared(data_dir, "yard")
    prepare.prepare("folder", raw, data_dir)
    assert len(prepared.read(data_dir, ["yard"])) == 8
    assert list((data_dir / "reid/yard").iterdir()) == [version("yard", data_dir)]  # nor what the killed one left


def test_counts_that_are_not_the_published_ones(raw, data_dir, capsys, complete):
    draw(raw / "viper", *VIPER[::2])
    options = ("viper", f"--manual_dir={raw}", f"--data_dir={data_dir}")
    sentence = "viper: found 1 ids, 2 images where 2 ids, 3 images are published"
    assert sentence in refused(capsys, *options)
    assert not_prepared(data_dir, "viper")
    assert cli.main(["prepare", *options, "--allow_incomplete"]) == 0
    assert sentence in capsys.readouterr().out
    assert len(prepared.read(data_dir, ["viper"])) == 2


def test_all_goes_on_after_a_set_that_is_not_whole(raw, data_dir, capsys, complete):
    """Of three sets the first and the last are incomplete; the one between them is prepared all the same."""
    draw(raw / "cuhk01", "campus/0001001.png")
    draw(raw / "viper", *VIPER)
    draw(raw / "ilids", "images/0001001.jpg")
    with pytest.raises(ValueError, match=r"cuhk01: found 1 ids"):
        prepare.prepare("all", raw, data_dir)
    assert "not prepared either: ilids: found 1 ids" in capsys.readouterr().out
    assert len(prepared.read(data_dir, ["viper"])) == 3
    assert not_prepared(data_dir, "cuhk01") and not_prepared(data_dir, "ilids")


def test_all_refuses_what_may_be_another_set(raw, data_dir, capsys):
    draw(raw, *MARKET)
    err = refused(capsys, "all", f"--manual_dir={raw}", f"--data_dir={data_dir}")
    assert "may hold market1501 in" in err and "dukemtmcreid in" in err
    prepare.prepare("market1501", raw, data_dir, allow_incomplete=True)  # the caller says which


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--manual_dir={raw}"], "the following arguments are required: NAME"),
        (["viper", "grid", "--manual_dir={raw}"], "unrecognized arguments: grid"),
        (["viper"], "the following arguments are required: --manual_dir"),
        (["viper", "--manual_dir={raw}", "--manual=x"], "there is no option '--manual': did you mean --manual_dir?"),
        (["viper", "--manual_dir={raw}", "--allow_incomplete=x"], "--allow_incomplete: ignored explicit argument"),
        (["vipr", "--manual_dir={raw}"], "there is no data set 'vipr': choose from all, folder, cuhk01, "),
        (["viper", "--manual_dir={raw}/empty"], "empty is empty: unpack the data sets"),
        (["viper", "--manual_dir={raw}/no"], "no does not exist or is not a folder"),
        (["viper", "--manual_dir={raw}"], "does not hold, itself or below, what was looked for: viper (below viper"),
        (["all", "--manual_dir={raw}/no"], "no does not exist or is not a folder"),
        (["all", "--manual_dir={raw}"], "what was looked for: cuhk01, cuhk02, "),
        (["folder", "--manual_dir={raw}/no"], "no does not exist or is not a folder"),
        (["folder", "--manual_dir={raw}/named"], "my yard: a domain's name may have letters, digits and _ + - . only"),
        (["folder", "--manual_dir={raw}/known"], "viper has the name of a published set: run metabin prepare viper"),
        (["folder", "--manual_dir={raw}/taken"], "1.0.0 exists but holds no prepared set: remove it"),
    ],
)
def test_what_cannot_be_prepared_is_one_sentence_and_leaves_nothing(capsys, raw, data_dir, arguments, message):
    (raw / "empty").mkdir(parents=True)
    small_folder(raw / "named", "my yard")
    small_folder(raw / "known", "viper")
    small_folder(raw / "taken", "taken")
    version("taken", data_dir).mkdir(parents=True)
    before = sorted(data_dir.rglob("*"))
    arguments = [argument.format(raw=raw) for argument in arguments]
    assert message in refused(capsys, *arguments, f"--data_dir={data_dir}")
    assert sorted(data_dir.rglob("*")) == before


def test_reading_what_is_not_prepared(raw, data_dir):
    with pytest.raises(FileNotFoundError, match=r"'viper' is not prepared in .*, which holds no set: run metabin prep"):
        dataset.read("prepared", str(data_dir), ("viper",))
    with pytest.raises(
        FileNotFoundError, match=r"^nothing is prepared in .* prepare NAME --manual_dir=DIR --data_dir=\S*d$"
    ):
        dataset.read("prepared", str(data_dir))
    prepare.prepare("folder", small_folder(raw), data_dir)
    for other, name in (("viper", "viper"), ("garden", "folder")):
        sentence = f"'{other}' is not prepared in .*, which holds yard: run metabin prepare {name} --manual_dir=DIR"
        with pytest.raises(FileNotFoundError, match=sentence):
            dataset.read("prepared", str(data_dir), ("yard", other))


@pytest.fixture
def yard(raw, data_dir) -> Path:
    """The folder of a prepared set."""
    prepare.prepare("folder", small_folder(raw), data_dir)
    return version("yard", data_dir)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_a_class_that_tfds_would_import_is_refused(yard, data_dir, tmp_path, monkeypatch, key):
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    features = (yard / "features.json").read_text()
    image = '"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"'
    assert image in features
    (yard / "features.json").write_text(features.replace(image, f'"{key}": "hostile.Image"'))
    with pytest.raises(UserError, match=r"features\.json names 'hostile\.Image', which no prepared set needs: remove"):
        prepared.load_images(prepared.read(data_dir), (4, 4), tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("features.json", "{", "["),
        ("features.json", '"featuresDict"', '"image"'),
        ("dataset_info.json", "{", "["),
        ("metadata.json", '"pid": [0', '"pid": [1e999'),
        ("metadata.json", '"pid": [0', '"pid": [99999999999999999999'),
        ("metadata.json", '"pid": [0', '"pid": ["0"'),
        ("metadata.json", '"pid": [0, ', '"pid": ['),
        ("metadata.json", '"split": ["all"', '"split": ["none"'),
        ("metadata.json", '"digest"', '"other"'),
        ("metadata.json", '{"path"', '["path"'),
    ],
)
def test_a_damaged_prepared_set_is_one_sentence(yard, data_dir, tmp_path, file, old, new):
    content = (yard / file).read_text()
    assert old in content
    (yard / file).write_text(content.replace(old, new, 1))
    with pytest.raises(UserError, match=r"(is damaged|does not hold the labels).*: remove the folder and run"):
        prepared.load_images(prepared.read(data_dir), (4, 4), tmp_path / "cache")
