"""Images decoded once into a memory-mapped array of resized uint8, which has a checksum per block."""

import contextlib
import hashlib
import io
import math
import operator
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metabin_jax.data.records import Record
from metabin_jax.runtime.devices import say
from metabin_jax.runtime.errors import UserError, few, needs
from metabin_jax.runtime.files import whole
from metabin_jax.runtime.progress import Progress

FORMAT = "metabin_jax images 2: RGB, upright by EXIF, bicubic, 16 bits to 8"  # of the key: change it with the decoding
# A file (name or object), an image of PIL, or RGB pixels uint8 [H, W, 3].
Picture = str | os.PathLike | IO[bytes] | Image.Image | np.ndarray
BLOCK = 2**24  # bytes that share a checksum
AT_ONCE = 512  # images that may wait, decoded, to be written
MOST_PIXELS = 2**26  # of an image: a file of a few kB can claim any number


def _file_stamp(record: Record) -> str:
    """Path, size and times of the record's image. Raises FileNotFoundError.

    Copying tools keep the time of modification, so it can be that of an earlier image; nobody sets the time of change.
    """
    path = os.path.abspath(record.path)
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"Image {path} does not exist.") from None
    return f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"


def load_images(
    records: Sequence[Record],
    size: tuple[int, int],
    cache_dir: str | Path,
    stamp: Callable[[Record], str] = _file_stamp,
    image_file: Callable[[Record], str | IO[bytes]] = operator.attrgetter("path"),
) -> np.memmap:
    """Decodes the records' images, or finds them decoded in cache_dir.

    Any mode that PIL reads (greyscale, RGBA, palette, ...) is converted to RGB and resized (bicubic) to `size`.
    The name of the cache file depends on `size` and on the stamps of the images in the order of the records. Each block
    of a file found is compared with its checksum. A damaged file is written again, and a line on stderr says so.

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
    shape = (len(records), height, width, 3)
    found = final.exists()
    if not found or not _is_intact(final, shape):
        if found:
            say(f"{final} is damaged: its images are decoded again")
        final.parent.mkdir(parents=True, exist_ok=True)
        with whole(final) as temporary, temporary.open("wb") as file:
            _decode_all(records, size, image_file, file)
            file.flush()
            file.write(_checksums(temporary, shape))
            file.flush()
            os.fsync(file.fileno())
    return np.memmap(final, np.uint8, "r", len(_header(shape)), shape)


def _is_intact(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a cache file holds images of this shape whose blocks have their checksums."""
    header, size = _header(shape), math.prod(shape)
    with path.open("rb") as file:
        begins = file.read(len(header)) == header
        file.seek(len(header) + size)
        return begins and file.read() == _checksums(path, shape)


def _checksums(path: Path, shape: tuple[int, ...]) -> bytes:
    """CRC-32 of each block of the images in a cache file, a little-endian uint32 each."""
    first = len(_header(shape))
    last = first + math.prod(shape)

    def checksum(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return zlib.crc32(file.read(min(BLOCK, last - start))).to_bytes(4, "little")

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib computes outside the GIL
        return b"".join(pool.map(checksum, range(first, last, BLOCK)))


def _header(shape: tuple[int, ...]) -> bytes:
    """Of the .npy file of this shape. The checksums follow its array."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def upright(file: str | os.PathLike | IO[bytes]) -> Image.Image:
    """`in_rgb` of an image file. Raises what PIL raises for a broken one, and as `in_rgb`."""
    try:
        opened = Image.open(file)
    except UnidentifiedImageError:
        if not _is_heif(file):
            raise
        needs("an image of the format HEIF", "heif", "pillow_heif")
        import pillow_heif

        pillow_heif.register_heif_opener()
        opened = Image.open(file)
    with opened as image:
        return in_rgb(image)


def _is_heif(file: str | os.PathLike | IO[bytes]) -> bool:
    with open(file, "rb") if isinstance(file, str | os.PathLike) else contextlib.nullcontext(file) as content:
        content.seek(4)
        return content.read(4) == b"ftyp"


def in_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB, turned as its EXIF says; 16 bits a pixel are scaled to 8.

    Raises UserError for one of other numbers or of more than MOST_PIXELS.
    """
    if image.width * image.height > MOST_PIXELS:
        raise UserError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS}: make it smaller")
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):
        # 65535 is 257 * 255. PIL itself would cut off at 255.
        turned = Image.fromarray(np.rint(np.asarray(turned) / 257).astype(np.uint8))
    elif turned.mode in ("I", "F"):
        raise UserError(f"pixels of the mode {turned.mode} have no known range: save it with 8 or 16 bits")
    return turned.convert("RGB")


def decode_image(picture: Picture, size: tuple[int, int]) -> np.ndarray:
    """One image as `load_images` decodes it: uint8 [height, width, 3].

    Raises what PIL raises for a broken file, and UserError as `in_rgb` and for an array of another kind.
    """
    height, width = size
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise UserError(
                f"an array must be RGB, uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}"
            )
        image = Image.fromarray(picture)
    else:
        image = in_rgb(picture) if isinstance(picture, Image.Image) else upright(picture)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def fault(path: str, error: Exception) -> str:
    """How `broken_error` names an image. The words of PIL say nothing to a user; ours do."""
    return f"{path} ({error})" if isinstance(error, UserError) else path


def broken_error(paths: Sequence[str], number: int) -> UserError:
    """One sentence that names the broken ones among `number` images."""
    are = "is" if len(paths) == 1 else "are"
    return UserError(f"{len(paths):,} of {number:,} images {are} broken; repair or remove: {few(paths)}.")


def _decode_all(
    records: Sequence[Record], size: tuple[int, int], image_file: Callable[[Record], str | IO[bytes]], file: IO[bytes]
) -> None:
    """Writes a .npy file image by image: a full disk then raises OSError. A memory map would crash the process."""

    def decode(record: Record) -> np.ndarray | str:
        try:
            return decode_image(image_file(record), size)
        except Exception as error:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
            return fault(record.path, error)

    broken = []
    file.write(_header((len(records), *size, 3)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes and resizes outside the GIL
        parts = (records[start : start + AT_ONCE] for start in range(0, len(records), AT_ONCE))
        decoded = (image for part in parts for image in pool.map(decode, part))
        for image in Progress("decoding images", len(records), decoded):
            if isinstance(image, str):
                broken.append(image)
            else:
                file.write(image.tobytes())
    if broken:
        raise broken_error(broken, len(records))
