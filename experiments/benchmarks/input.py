"""Images per second that reach a training step: our cache of decoded images against a PyTorch DataLoader.

    python -m experiments.benchmarks.input [--images=2000] [--turns=5]        (needs PyTorch: pip install -e '.[torch]')

Uses the paper's batches, 80 + 48 + 32 images of 256 x 128, sampled from random JPEGs in a temporary folder: first of
Market-1501's size, then of a larger one. (They are smooth noise, which decodes faster than photographs; this favours
PyTorch.) Contestants take turns; ratios are of medians. Each delivers two forms:

  uint8    PyTorch: two workers open, decode and resize (bicubic) each image with PIL and collate given rows.
           Ours: samples the rows and gathers them from the cache; grain's threads read ahead.
  float32  Also mirrored, padded by 10, cropped and normalised. PyTorch: in the workers (PIL, then NumPy).
           Ours: on the device, by `augment`, which a training runs within its step. On a CPU this uses the
           same cores.

Two more numbers: the gathering alone, into memory that is already allocated, and the filling of the cache, which
happens once for all runs on the same images. All images stay in the page cache, for PyTorch too.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from metabin_jax.data.augment import MEAN, STD, augment
from metabin_jax.data.cache import load_images
from metabin_jax.data.pipeline import StepBatches, batches
from metabin_jax.data.records import Record
from metabin_jax.data.sampler import DomainSampler, MetaSampler

SIZE = (256, 128)
PAD = 10
FILE_SIZES = ((128, 64), (480, 200))
IMAGES_PER_STEP = 80 + 48 + 32
TORCH_STEPS, OUR_STEPS = 8, 80  # in a turn


class Files:
    """A PyTorch dataset: row -> (image, pid, domain)."""

    def __init__(self, paths: list[str], pid: np.ndarray, domain: np.ndarray, ready: bool):
        self.paths, self.pid, self.domain, self.ready = paths, pid, domain, ready
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int, int]:
        height, width = SIZE
        with Image.open(self.paths[row]) as file:
            image = file.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        if not self.ready:
            return np.array(image), int(self.pid[row]), int(self.domain[row])
        if self.rng.random() < 0.5:
            image = ImageOps.mirror(image)
        left, top = self.rng.integers(0, 2 * PAD + 1, 2).tolist()
        image = ImageOps.expand(image, PAD).crop((left, top, left + width, top + height))
        array = (np.asarray(image, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        return array, int(self.pid[row]), int(self.domain[row])


def torch_epoch(files: Files, rows: list[list[int]]) -> Callable[[], None]:
    from torch.utils.data import DataLoader

    # JAX warns of forked workers: they would share its threads.
    loader: Iterable[Any] = DataLoader(
        files, batch_sampler=rows, num_workers=2, persistent_workers=True, multiprocessing_context="forkserver"
    )

    def epoch() -> None:
        for image, _, _ in loader:
            assert image.shape == (IMAGES_PER_STEP, *SIZE, 3)

    return epoch


def our_epochs(images: np.ndarray, pid: np.ndarray, domain: np.ndarray, rows: Callable) -> dict[str, Callable]:
    import jax

    def read() -> Iterable[StepBatches]:
        return batches(images, pid, domain, rows, 0, OUR_STEPS)

    def read_all() -> None:
        for batch in read():
            assert sum(len(part.pid) for part in batch if part) == IMAGES_PER_STEP

    @jax.jit
    def ready(key: jax.Array, raw: StepBatches) -> Any:
        return [augment(key, part.image, PAD) for part in raw if part]

    def ready_all() -> None:
        key = jax.random.key(0)
        for batch in read():
            jax.block_until_ready(ready(key, jax.device_put(batch)))

    all_rows = [np.concatenate(rows(step)) for step in range(OUR_STEPS)]
    out = np.zeros((IMAGES_PER_STEP, *SIZE, 3), np.uint8)

    def gather() -> None:
        for row in all_rows:
            np.take(images, row, axis=0, out=out, mode="clip")

    return {"ours, uint8": read_all, "ours, float32": ready_all, "gathering alone": gather}


def compare(height: int, width: int, count: int, turns: int) -> None:
    from experiments.benchmarks.embedding import draw

    pid, domain = np.arange(count) // 20, np.arange(count) * 5 // count
    sampler = DomainSampler(pid, domain, ids_per_domain=4, images_per_id=4, seed=0)
    meta = MetaSampler(sampler, num_meta_train=3).meta

    def rows(step: int) -> list[np.ndarray]:
        return [sampler.base(step), *meta(step)]

    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), count, (height, width), (height, width))
        paths = [f"{folder}/{number}.jpg" for number in range(count)]
        records = [
            Record(path, *map(int, labels), "a", "all") for path, *labels in zip(paths, pid, domain, strict=True)
        ]
        start = time.perf_counter()
        images = load_images(records, SIZE, folder)
        filling = time.perf_counter() - start
        torch_rows = [np.concatenate(rows(step)).tolist() for step in range(TORCH_STEPS)]
        calls = {
            "PyTorch, uint8": torch_epoch(Files(paths, pid, domain, ready=False), torch_rows),
            "PyTorch, float32": torch_epoch(Files(paths, pid, domain, ready=True), torch_rows),
            **our_epochs(images, pid, domain, rows),
        }
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(turns + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                taken = time.perf_counter() - start
                if turn:  # the first one starts workers and compiles
                    steps = TORCH_STEPS if name.startswith("PyTorch") else OUR_STEPS
                    rates[name].append(steps * IMAGES_PER_STEP / taken)
    rate = {name: statistics.median(values) for name, values in rates.items()}
    print(f"files of {height} x {width}; filling the cache: {count / filling:.0f} images/s, once")
    for name, values in rates.items():
        print(f"  {name:18}{rate[name]:9.0f} images/s   ({' '.join(f'{value:.0f}' for value in values)})")
    for kind in ("uint8", "float32"):
        print(f"  ours / PyTorch, {kind}: {rate[f'ours, {kind}'] / rate[f'PyTorch, {kind}']:.1f}")
    print(f"  ours, uint8 / gathering alone: {rate['ours, uint8'] / rate['gathering alone']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    for height, width in FILE_SIZES:
        compare(height, width, args.images, args.turns)


if __name__ == "__main__":
    main()
