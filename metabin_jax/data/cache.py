"""Images decoded once into a memory-mapped array of resized uint8."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from metabin_jax.data.records import Record

FORMAT = "metabin_jax images 1: RGB, upright by EXIF, bicubic"  # part of the key: change it with the decoding
PROGRESS_EVERY = 1000  # images
MAX_NAMED = 5  # broken files that an error names


def load_images(records: Sequence[Record], size: tuple[int, int], cache_dir: str | Path) -> np.memmap:
    """Decodes the records' images, or finds them decoded in cache_dir.

    Any mode PIL reads (greyscale, RGBA, palette, ...) is converted to RGB, then resized (bicubic) to `size`.
    The cache file is keyed by `size` and by the paths, sizes and modification times of the images in record
    order, and takes its name only when it is complete.

    Args:
      records: n of them.
      size: (height, width) in pixels.
      cache_dir: created if need be; n * height * width * 3 bytes are written to it.

    Returns:
      Read-only uint8 [n, height, width, 3], aligned with records.

    Raises:
      FileNotFoundError: an image does not exist.
      ValueError: records is empty, or images cannot be decoded (names the first five).
    """
    if not records:
        raise ValueError("There is no record to load images of.")
    height, width = size
    cache_dir = Path(cache_dir)
    final = cache_dir / f"images-{height}x{width}-{_key(records, size)}.npy"
    if not final.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache_dir, suffix=".tmp", delete=False) as file:
            try:
                _decode_all(records, size, file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, final)
            except BaseException:
                os.unlink(file.name)
                raise
    return np.load(final, mmap_mode="r")


def _key(records: Sequence[Record], size: tuple[int, int]) -> str:
    digest = hashlib.sha256(f"{FORMAT}, {size[0]}x{size[1]}".encode())
    for record in records:
        path = os.path.abspath(record.path)
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"Image {path} does not exist.") from None
        digest.update(f"\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _decode_all(records: Sequence[Record], size: tuple[int, int], file: IO[bytes]) -> None:
    """Writes a .npy file image by image: a full disk is an OSError here, where a memory map would crash."""

    def decode(record: Record) -> np.ndarray | Exception:
        try:
            return decode_image(record.path, size)
        except Exception as error:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
            return error

    broken = []
    shape = (len(records), *size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes and resizes outside the GIL
        for done, (record, image) in enumerate(zip(records, pool.map(decode, records), strict=True), start=1):
            if isinstance(image, Exception):
                broken.append(record.path)
            else:
                file.write(image.tobytes())
            if len(records) > PROGRESS_EVERY and (done % PROGRESS_EVERY == 0 or done == len(records)):
                end = "\n" if done == len(records) else ""
                print(f"\rdecoding images: {done} of {len(records)}", end=end, file=sys.stderr, flush=True)
    if broken:
        named = ", ".join(broken[:MAX_NAMED]) + (", ..." if len(broken) > MAX_NAMED else "")
        raise ValueError(f"{len(broken)} of {len(records)} images are broken; repair or remove: {named}.")


def decode_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """One image as `load_images` decodes it: uint8 [height, width, 3]. Raises whatever PIL does for a broken one."""
    height, width = size
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize((width, height), Image.Resampling.BICUBIC))
