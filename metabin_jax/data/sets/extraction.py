"""Extracts images from sets published in another form: CUHK03 (one MATLAB file) and CUHK-SYSU (whole scenes)."""

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from metabin_jax.data.sets import catalogue, readers
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.progress import Progress

VIEW_IMAGES = 5  # of a person in CUHK03: the first five of view 1, the others of view 2
CUHK03_CELLS = 2 * VIEW_IMAGES

Box = tuple[int, int, int, int]


def ready(name: str, root: Path, into: Path) -> Path:
    """A folder that `catalogue.read_set(name, ...)` reads; extracts the images if necessary.

    cuhk03, cuhk03np: the cells `detected` of cuhk-03.mat become images_detected/{pair}_{pid}_{view}_{n}.png.
    cuhksysu: the boxes of annotation/Person.mat in Image/SSM become cropped_image/p00001_n01_s00001_hard0.png.
    PNG keeps the exact pixels. The new folder gets its name when it is complete.

    root: the set's folder, or one that holds it (as for `catalogue.find`). into: created if it does not exist. The
    images go to `into / name`; if they are there already, they are kept.

    Returns the set's own root if its images are files there, else `into / name`.
    Raises what `catalogue.find` does, and UserError if a file is damaged or missing, or `into / name` something else.
    """
    data_set, root = catalogue.find(root, name)
    if not data_set.is_raw(root):
        return root
    final = into / name
    if final.exists():
        if data_set.is_raw(final):
            raise UserError(
                f"{final} exists but holds no images extracted before: remove it, or choose another folder."
            )
        return final
    if name == "cuhk03np":
        readers.read_new_protocol(root)  # fails before the long work if it is damaged
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=f".{name}-") as temporary:
        unfinished = Path(temporary) / name
        unfinished.mkdir()
        if name == "cuhksysu":
            _cut_cuhksysu(root, unfinished)
        else:
            _extract_cuhk03(root, unfinished)
        if name == "cuhk03np":
            shutil.copy(readers.in_release(root, readers.NEW_PROTOCOL), unfinished)
        if not final.exists():  # another process may have been faster
            os.rename(unfinished, final)
    return final


def _extract_cuhk03(root: Path, into: Path) -> None:
    path = readers.in_release(root, readers.CUHK03_MAT)
    folder = into / readers.CUHK03_IMAGES
    folder.mkdir()
    for name, image_HWC in _cuhk03_images(path):
        Image.fromarray(image_HWC).save(folder / name)
    if not any(folder.iterdir()):
        raise UserError(f"{path} holds no image in its cells 'detected': get it again.")


def _cuhk03_images(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (file name, uint8 [H, W, 3]). HDF5 has MATLAB's dimensions in reverse: an image is [3, W, H]."""
    try:
        with h5py.File(path, "r") as file:
            pairs = [file[pair][()] for pair in file["detected"][()].flat]
            if any(people.ndim != 2 or len(people) != CUHK03_CELLS for people in pairs):
                raise ValueError(f"its pairs are not of {CUHK03_CELLS} images a person")
            cells = [
                (pair, person, cell, reference)
                for pair, people in zip(readers.PAIRS, pairs, strict=True)
                for person, row in enumerate(people.T, start=1)
                for cell, reference in enumerate(row, start=1)
            ]
            for pair, person, cell, reference in Progress("extracting images", len(cells), cells):
                image = file[reference][()]
                if image.ndim > 2:  # an empty cell is stored as its two dimensions
                    if image.dtype != np.uint8 or len(image) != 3:
                        raise ValueError(
                            f"image {cell} of person {person} in pair {pair} is {image.dtype}{image.shape}"
                        )
                    view = 1 if cell <= VIEW_IMAGES else 2
                    yield f"{pair}_{person:03d}_{view}_{cell:02d}.png", np.ascontiguousarray(image.T)
    except Exception as error:  # damaged files make h5py raise OSError, KeyError, RuntimeError, ...
        raise UserError(f"{path} is damaged or not CUHK03's ({error}): get it again.") from error


def _cut_cuhksysu(root: Path, into: Path) -> None:
    scenes = root / readers.CUHKSYSU_SCENES
    boxes_of = readers.load_mat(root / readers.CUHKSYSU_MAT, _cuhksysu_boxes)
    paths = readers.inside(scenes, sorted(boxes_of))
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise UserError(f"{missing[0]} is annotated but does not exist ({len(missing)} such): unpack the set again.")
    folder = into / "cropped_image"
    folder.mkdir()
    jobs = sorted(boxes_of.items())
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes and encodes outside the GIL
        cut = pool.map(lambda job: _cut(paths[job[0]], job[1], folder), jobs)
        for _ in Progress("cutting scenes", len(jobs), cut, unit="scenes"):
            pass


def _cuhksysu_boxes(content: dict[str, Any]) -> dict[str, list[tuple[str, Box]]]:
    """{scene: [(file name of the crop, its box)]}.

    A box of the annotation is (x, y, width, height). By the README of the set it is I(y:y+height, x:x+width) in
    MATLAB, which counts from 1 and includes both ends. Here a box is (left, upper, right, lower) as in PIL.
    """
    boxes_of = defaultdict(list)
    for person in np.atleast_1d(content["Person"]):
        scenes, appearances = np.atleast_1d(person["scene"]), int(person["nAppear"])
        if len(scenes) < appearances:
            raise ValueError(f"{person['idname']} has {len(scenes)} boxes of {appearances}")
        for number, scene in enumerate(scenes[:appearances], start=1):
            pid, frame = int(person["idname"].removeprefix("p")), int(Path(scene["imname"]).stem.removeprefix("s"))
            name = f"p{pid:05d}_n{number:02d}_s{frame:05d}_hard{int(scene['ishard'])}.png"
            x, y, width, height = (int(value) for value in scene["idlocate"])
            if width < 1 or height < 1:
                raise ValueError(f"the box of {person['idname']} in {scene['imname']} is empty")
            boxes_of[scene["imname"]].append((name, (x - 1, y - 1, x + width, y + height)))
    if not boxes_of:
        raise ValueError("it lists no person")
    return boxes_of


def _cut(scene: Path, boxes: list[tuple[str, Box]], folder: Path) -> None:
    """Writes the crops of one scene, each cut off at the border of the scene."""
    try:
        with Image.open(scene) as file:
            image = file.convert("RGB")
    except Exception as error:  # broken files make PIL raise OSError, SyntaxError, ValueError, ...
        raise UserError(f"{scene} is broken ({error}): unpack the set again.") from error
    for name, (left, upper, right, lower) in boxes:
        left, upper, right, lower = max(left, 0), max(upper, 0), min(right, image.width), min(lower, image.height)
        if left >= right or upper >= lower:
            raise UserError(f"The box of {name} is outside its scene {scene}: get the annotation again.")
        image.crop((left, upper, right, lower)).save(folder / name)
