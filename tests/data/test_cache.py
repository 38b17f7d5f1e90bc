import itertools
import os

import numpy as np
import pytest
import tqdm.std
from PIL import Image

from metabin_jax.data import cache
from metabin_jax.data.cache import load_images
from metabin_jax.data.records import Record

SIZE = (12, 6)


def record(path) -> Record:
    return Record(str(path), 0, 0, "a", "all")


def pattern(mode: str, height=24, width=10) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def cubic(t: np.ndarray) -> np.ndarray:
    """Keys' bicubic kernel with a = -0.5."""
    t = np.abs(t)
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t < 1, near, np.where(t < 2, far, 0))


def resize_axis(image: np.ndarray, size: int) -> np.ndarray:
    """Bicubic resampling along axis 0, the kernel widened when shrinking (antialiasing)."""
    scale = image.shape[0] / size
    centre = (np.arange(size) + 0.5) * scale
    weight = cubic((np.arange(image.shape[0]) + 0.5 - centre[:, None]) / max(scale, 1))
    weight /= weight.sum(1, keepdims=True)
    return np.tensordot(weight, image, 1)


def test_bicubic_resize_of_rgb(tmp_path):
    image = pattern("RGB")
    image.save(tmp_path / "1.png")
    pixels = np.asarray(image).astype(float)
    expected = resize_axis(resize_axis(pixels, 12).swapaxes(0, 1), 6).swapaxes(0, 1).clip(0, 255)
    result = load_images([record(tmp_path / "1.png")], SIZE, tmp_path / "cache")
    assert result.shape == (1, 12, 6, 3)
    assert result.dtype == np.uint8
    assert not result.flags.writeable
    assert np.abs(result[0].astype(float) - expected).max() < 2  # PIL rounds after each axis
    swapped = expected[..., ::-1]  # BGR must fail
    assert np.abs(result[0].astype(float) - swapped).max() > 20


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = pattern("RGB").convert(mode)
    path = tmp_path / ("1.tiff" if mode == "CMYK" else "1.png")
    image.save(path)
    expected = np.asarray(image.convert("RGB"))
    assert (load_images([record(path)], (24, 10), tmp_path / "cache")[0] == expected).all()


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    image = pattern("RGB", 10, 24)
    image.save(tmp_path / "1.png", exif=exif)
    expected = np.rot90(np.asarray(image), -1)
    assert (load_images([record(tmp_path / "1.png")], (24, 10), tmp_path / "cache")[0] == expected).all()


def test_rows_follow_records_and_non_ascii_paths_work(tmp_path):
    folder = tmp_path / "Straße_猫"
    folder.mkdir()
    records = []
    for value in (9, 3, 200):
        Image.new("RGB", (6, 12), (value, 0, 0)).save(folder / f"{value}é.png")
        records.append(record(folder / f"{value}é.png"))
    images = load_images(records, SIZE, tmp_path / "cache")
    assert images[:, 0, 0, 0].tolist() == [9, 3, 200]


def test_decodes_once_and_again_when_anything_changes(tmp_path, monkeypatch):
    path, other, cache_dir = tmp_path / "1.png", tmp_path / "2.png", tmp_path / "cache"
    pattern("RGB").save(path)
    pattern("RGB").save(other)
    decoded = []
    original = cache.decode_image
    monkeypatch.setattr(cache, "decode_image", lambda *a: decoded.append(a) or original(*a))

    def decodings(records, size=SIZE):
        decoded.clear()
        load_images(records, size, cache_dir)
        return len(decoded)

    both = [record(path), record(other)]
    assert decodings(both) == 2
    assert decodings(both) == 0
    assert decodings(both[::-1]) == 2
    assert decodings(both, (6, 12)) == 2
    os.utime(path, ns=(1, 1))
    assert decodings(both) == 2
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")  # the same modification time, another size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert decodings(both) == 2
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"1")  # the same size and modification time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert decodings(both) == 2
    assert decodings(both) == 0


def test_relative_and_absolute_paths_share_a_cache(tmp_path, monkeypatch):
    pattern("RGB").save(tmp_path / "1.png")
    monkeypatch.chdir(tmp_path)
    load_images([record("1.png")], SIZE, tmp_path / "cache")
    load_images([record(tmp_path / "1.png")], SIZE, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def broken_file(path, kind: str) -> None:
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not an image")
    else:
        pattern("RGB", 64, 64).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kind", ["empty", "text", "truncated"])
def test_a_broken_image_is_named_and_leaves_no_cache(tmp_path, kind, suffix):
    good, bad = tmp_path / "good.png", tmp_path / f"bad{suffix}"
    pattern("RGB").save(good)
    broken_file(bad, kind)
    with pytest.raises(ValueError, match=rf"1 of 2 images is broken; repair or remove: \S*bad\{suffix}\.$"):
        load_images([record(good), record(bad)], SIZE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_many_broken_images_name_five(tmp_path):
    for i in range(7):
        broken_file(tmp_path / f"{i}.jpg", "empty")
    with pytest.raises(ValueError, match=r"7 of 7 images are broken") as error:
        load_images([record(tmp_path / f"{i}.jpg") for i in range(7)], SIZE, tmp_path / "cache")
    assert [f"{i}.jpg" in str(error.value) for i in range(7)] == [True] * 5 + [False] * 2


def test_interruption_leaves_no_cache(tmp_path, monkeypatch):
    pattern("RGB").save(tmp_path / "1.png")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_images([record(tmp_path / "1.png")], SIZE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_ends_the_decoding(tmp_path, monkeypatch):
    """Neither is everything decoded first, nor does it wait in memory."""
    monkeypatch.setattr(cache, "AT_ONCE", 4)
    pattern("RGB").save(tmp_path / "1.png")
    opened, written = [], []

    def image_file(record):
        opened.append(record.path)
        return record.path

    class Full:
        def write(self, content):
            written.append(content)
            if len(written) == 7:  # the header, and six images
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache._decode_all([record(tmp_path / "1.png")] * 40, SIZE, image_file, Full())
    assert len(opened) == 8


def test_missing_image_and_no_records(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Image \S*none\.jpg does not exist"):
        load_images([record(tmp_path / "none.jpg")], SIZE, tmp_path / "cache")
    with pytest.raises(ValueError, match="no record"):
        load_images([], SIZE, tmp_path / "cache")


def test_progress_is_shown_if_decoding_takes_long(tmp_path, capsys, monkeypatch):
    pattern("RGB").save(tmp_path / "1.png")
    monkeypatch.setattr(tqdm.std, "time", lambda: 0.0)
    load_images([record(tmp_path / "1.png")] * 1000, SIZE, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(tqdm.std, "time", itertools.count().__next__)  # a second passes at every look at the clock
    load_images([record(tmp_path / "1.png")] * 1001, SIZE, tmp_path / "cache")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("decoding images: 1001/1001, ")


def cached(tmp_path, number=3) -> tuple[list[Record], np.ndarray]:
    """Images in blocks of 100 bytes, and what they are."""
    for row in range(number):
        Image.fromarray(np.random.default_rng(row).integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / f"{row}.png")
    records = [record(tmp_path / f"{row}.png") for row in range(number)]
    return records, np.array(load_images(records, SIZE, tmp_path / "cache"))


def zero_pixels(content: bytearray) -> None:
    content[200:230] = bytes(30)


def flip_a_bit(content: bytearray) -> None:
    content[-200] ^= 1


def another_shape(content: bytearray) -> None:
    """The header's, of the same length."""
    at = content.find(b"(3, 12, 6, 3)")
    assert at > 0
    content[at : at + 13] = b"(3, 6, 12, 3)"


def cut_off(content: bytearray) -> None:
    del content[len(content) // 2 :]


def too_long(content: bytearray) -> None:
    content += b"\0"


def of_a_checksum(content: bytearray) -> None:
    content[-1] ^= 128


@pytest.mark.parametrize("damage", [zero_pixels, flip_a_bit, another_shape, cut_off, too_long, of_a_checksum])
def test_a_damaged_cache_is_decoded_again_and_said_so(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr(cache, "BLOCK", 100)
    records, expected = cached(tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    damage(content)
    file.write_bytes(content)
    capsys.readouterr()
    for said in (f"{file} is damaged: its images are decoded again\n", ""):
        assert (load_images(records, SIZE, tmp_path / "cache") == expected).all()
        assert capsys.readouterr().err == said


def test_a_cache_is_a_file_of_numpy_whose_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        _, expected = cached(tmp_path)
    finally:
        os.umask(before)
    (file,) = (tmp_path / "cache").iterdir()
    assert (np.load(file) == expected).all()
    assert file.stat().st_mode & 0o777 == 0o640


def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path):
    grey = np.linspace(0, 65535, 72).astype(np.uint16).reshape(SIZE)
    for name in ("1.png", "1.tiff"):
        Image.fromarray(grey).save(tmp_path / name)
        images = load_images([record(tmp_path / name)], SIZE, tmp_path / "cache")
        assert (images[0] == np.rint(grey / 257)[..., None]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones(SIZE, dtype)).save(tmp_path / "1.tiff")
    with pytest.raises(ValueError, match=r"1 of 1 images .*1\.tiff \(pixels of the mode [FI] have no known range"):
        load_images([record(tmp_path / "1.tiff")], SIZE, tmp_path / "cache")


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "1.png")
    assert (tmp_path / "1.png").stat().st_size < 20_000
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(ValueError, match=r"1\.png \(9000 x 9000 pixels are more than \d+: make it smaller"):
        load_images([record(tmp_path / "1.png")], SIZE, tmp_path / "cache")
