"""Images decoded once into a memory-mapped array of resized uint8."""

import hashlib
import operator
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from metabin_jax.data.records import Record
from metabin_jax.runtime.errors import UserError, few
from metabin_jax.runtime.files import whole
from metabin_jax.runtime.progress import Progress

FORMAT = "metabin_jax images 1: RGB, upright by EXIF, bicubic"  # part of the key: change it with the decoding


def _file_stamp(record: Record) -> str:
    """Path, size and modification time of the record's image. Raises FileNotFoundError."""
    path = os.path.abspath(record.path)
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"Image {path} does not exist.") from None
    return f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}"


def load_images(
    records: Sequence[Record],
    size: tuple[int, int],
    cache_dir: str | Path,
    stamp: Callable[[Record], str] = _file_stamp,
    image_file: Callable[[Record], str | IO[bytes]] = operator.attrgetter("path"),
) -> np.memmap:
    """Decodes the records' images, or finds them decoded in cache_dir.

    Any mode that PIL reads (greyscale, RGBA, palette, ...) is converted to RGB and resized (bicubic) to `size`.
    The name of the cache file depends on `size` and on the stamps of the images in the order of the records.

    Args:
      size: (height, width) in pixels.
      cache_dir: created if it does not exist; as many bytes as the array has are written to it.
      stamp: a text that changes when the image of a record changes.
      image_file: what PIL opens for a record; called by several threads.

    Returns read-only uint8 [n, height, width, 3], aligned with the n records. Raises FileNotFoundError if an image does
    not exist, and UserError, which names the first five, if images cannot be decoded.
    """
    if not records:
        raise ValueError("There is no record to load images of.")
    height, width = size
    key = hashlib.sha256(f"{FORMAT}, {height}x{width}".encode())
    for record in records:
        key.update(f"\0{stamp(record)}".encode(errors="surrogateescape"))
    final = Path(cache_dir) / f"images-{height}x{width}-{key.hexdigest()}.npy"
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        with whole(final) as temporary, temporary.open("wb") as file:
            _decode_all(records, size, image_file, file)
            file.flush()
            os.fsync(file.fileno())
    return np.load(final, mmap_mode="r")


def upright(file: str | IO[bytes]) -> Image.Image:
    """An image in RGB, turned as its EXIF says. Raises what PIL raises for a broken one."""
    with Image.open(file) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def decode_image(file: str | IO[bytes], size: tuple[int, int]) -> np.ndarray:
    """One image as `load_images` decodes it: uint8 [height, width, 3]. Raises what PIL raises for a broken one."""
    height, width = size
    return np.asarray(upright(file).resize((width, height), Image.Resampling.BICUBIC))


def broken_error(paths: Sequence[str], number: int) -> UserError:
    """One sentence that names the broken ones among `number` images."""
    return UserError(f"{len(paths)} of {number} images are broken; repair or remove: {few(paths)}.")


def _decode_all(
    records: Sequence[Record], size: tuple[int, int], image_file: Callable[[Record], str | IO[bytes]], file: IO[bytes]
) -> None:
    """Writes a .npy file image by image: a full disk then raises OSError. A memory map would crash the process."""

    def decode(record: Record) -> np.ndarray | None:
        try:
            return decode_image(image_file(record), size)
        except Exception:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
            return None

    broken = []
    shape = (len(records), *size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes and resizes outside the GIL
        decoded = zip(records, pool.map(decode, records), strict=True)
        for record, image in Progress("decoding images", len(records), decoded):
            if image is None:
                broken.append(record.path)
            else:
                file.write(image.tobytes())
    if broken:
        raise broken_error(broken, len(records))
