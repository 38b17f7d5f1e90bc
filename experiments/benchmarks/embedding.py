"""Images per second of `metabin embed` against PyTorch and ONNX Runtime: the same net, weights and images.

    python -m experiments.benchmarks.embedding      (needs PyTorch and ONNX Runtime: pip install -e '.[torch,export]')

The images are random JPEGs of 256 x 128 to 480 x 200 pixels in a temporary folder. (They are smooth noise, which
decodes faster than photographs.) Contestants take turns in one process:

  metabin embed          `embed_images`: grain's threads decode, XLA runs the net
  PyTorch                torchreid's way: a DataLoader of two workers that decode, resize and normalise with PIL and
                         PyTorch; the net is the twin in tests/torch_nets.py in its natural form
  PyTorch, torch.compile the same, the net compiled
  ONNX Runtime           the file of `metabin export --to=onnx`; a DataLoader of two workers decodes and resizes

Each is timed as a whole, then decoding alone, then the net alone on a batch that is ready. Before that, all must give
the same embeddings. Rates are medians with minimum and maximum; ratios are of medians. A contestant that cannot run is
left out, and a line says why. In the net, half of the channels have a rho between 0 and 1; the others have 0 or 1.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metabin_jax import models
from metabin_jax.data.augment import MEAN, STD
from metabin_jax.evaluation.distances import unit_length
from metabin_jax.evaluation.embedding import embed_batches
from metabin_jax.export import FORMATS
from metabin_jax.retrieval.encoder import embed_images, read_batches
from metabin_jax.retrieval.listing import list_images
from metabin_jax.training.config import metabin
from metabin_jax.training.trained import Trained

NUM_IDS, BATCH_SIZE = 100, 128
SMALLEST, LARGEST = (256, 128), (480, 200)  # files
NET_BATCHES = 4  # in a turn of the net alone
TOLERANCE = 1e-3  # in a component of an embedding of length 1
OURS = "metabin embed"
PARTS = ("whole", "decoding alone", "net alone")


class Contestant(NamedTuple):
    """pixels: the first n images, as batches that `embed` takes. whole: embeddings of the first n images."""

    pixels: Callable[[int], Iterator[Any]]
    embed: Callable[[Any], np.ndarray]
    whole: Callable[[int], np.ndarray]


class Files:
    """A PyTorch dataset: row -> uint8 [H, W, 3] or, `ready` for the twin, normalised float32 [3, H, W]."""

    def __init__(self, paths: Sequence[str], size: tuple[int, int], ready: bool):
        self.paths, self.size, self.ready = paths, size, ready

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Any:
        import torch

        height, width = self.size
        with Image.open(self.paths[row]) as file:
            image = torch.from_numpy(np.array(file.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)))
        if not self.ready:
            return image
        mean, std = (torch.tensor(moment).view(3, 1, 1) for moment in (MEAN, STD))
        return (image.permute(2, 0, 1).contiguous().float() / 255 - mean) / std


def draw(folder: Path, count: int, smallest: tuple[int, int], largest: tuple[int, int]) -> None:
    """JPEGs of smooth noise between two sizes (height, width), about as large as a picture's."""
    rng = np.random.default_rng(0)
    for number in range(count):
        share = rng.random()
        height, width = (round(low + share * (high - low)) for low, high in zip(smallest, largest, strict=True))
        coarse = Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def trained(name: str, size: tuple[int, int]) -> Trained:
    """A MetaBIN net whose values look trained: moments, affines and rho are away from where they start."""
    model = models.create(name, NUM_IDS)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, *size, 3), np.float32))
    rng = np.random.default_rng(0)

    def value(path: Any, leaf: Any) -> NDArray[np.float32]:
        kind = path[-1].key
        if kind == "kernel":
            drawn = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        elif kind == "rho":
            drawn = np.where(rng.random(leaf.shape) < 0.5, rng.random(leaf.shape), rng.integers(0, 2, leaf.shape))
        else:
            ranges = {"var": (0.5, 2), "mean": (-0.5, 0.5), "bn_bias": (-0.4, 0.4), "in_bias": (-0.4, 0.4)}
            drawn = rng.uniform(*ranges.get(kind, (0.6, 1.4)), leaf.shape)
        return drawn.astype(np.float32)

    config = metabin()
    config.model.name, config.eval.batch_size = name, BATCH_SIZE
    config.data.height, config.data.width = size
    return Trained(Path(), config, 0, None, model, jax.tree_util.tree_map_with_path(value, shapes))


def loader(paths: Sequence[str], size: tuple[int, int], ready: bool) -> Callable[[int], Iterator[Any]]:
    """Batches of the first n images by two workers, which live as long as the function."""
    from torch.utils.data import DataLoader

    rows: list[list[int]] = []
    files: Any = Files(paths, size, ready)
    # JAX warns of forked workers: they would share its threads.
    batches: Iterable[Any] = DataLoader(
        files, batch_sampler=rows, num_workers=2, persistent_workers=True, multiprocessing_context="forkserver"
    )

    def pixels(count: int) -> Iterator[Any]:
        rows[:] = [list(range(first, min(first + BATCH_SIZE, count))) for first in range(0, count, BATCH_SIZE)]
        return iter(batches)

    return pixels


def ours(run: Trained, folder: str) -> Contestant:
    listed = list_images(folder)
    paths = [image.path for image in listed]

    def pixels(count: int) -> Iterator[NDArray[np.uint8]]:
        return (image_NHWC for image_NHWC, _ in read_batches(paths[:count], run.size, min(BATCH_SIZE, count)))

    def embed(image_NHWC: NDArray[np.uint8]) -> np.ndarray:
        return next(embed_batches(run.model, run.variables, [image_NHWC], len(image_NHWC)))

    def whole(count: int) -> np.ndarray:
        with contextlib.redirect_stderr(io.StringIO()):  # the progress line
            return embed_images(run, listed[:count])[0].feature

    return Contestant(pixels, embed, whole)


def others(run: Trained, folder: str) -> Iterator[tuple[str, Callable[[], Contestant]]]:
    """Names and what makes them; making one, or its first batch, raises if it cannot run."""
    paths = [image.path for image in list_images(folder)]

    def contestant(pixels: Callable[[int], Iterator[Any]], embed: Callable[[Any], np.ndarray]) -> Contestant:
        return Contestant(pixels, embed, lambda count: np.concatenate([embed(batch) for batch in pixels(count)]))

    @functools.cache
    def ready() -> tuple[Any, Callable[[int], Iterator[Any]]]:
        needs("torch")
        sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
        import torch_nets

        twin = torch_nets.build(run.config.model.name, NUM_IDS, "metabin")
        torch_nets.load_flax(twin, run.variables)
        return twin.eval(), loader(paths, run.size, ready=True)

    def pytorch(compiled: bool) -> Contestant:
        twin, pixels = ready()
        import torch

        net = torch.compile(twin) if compiled else twin

        def embed(image_NCHW: Any) -> np.ndarray:
            with torch.inference_mode():
                return net(image_NCHW)[1].numpy()

        return contestant(pixels, embed)

    def onnx() -> Contestant:
        needs("torch", *FORMATS["onnx"].needs)
        file = Path(folder) / "net.onnx"
        file.write_bytes(FORMATS["onnx"].write(run.model, run.variables, np.zeros((1, *run.size, 3), np.uint8)))
        embed = FORMATS["onnx"].load(file)
        return contestant(loader(paths, run.size, ready=False), lambda batch: embed(batch.numpy()))

    yield "PyTorch", functools.partial(pytorch, compiled=False)
    yield "PyTorch, torch.compile", functools.partial(pytorch, compiled=True)
    yield "ONNX Runtime", onnx


def needs(*modules: str) -> None:
    if jax.default_backend() != "cpu":
        raise RuntimeError("it runs on the CPU, ours does not")
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise RuntimeError(f"{' and '.join(missing)} not installed")


def check(expected_ND: np.ndarray, found_ND: np.ndarray, name: str) -> None:
    """Raises ValueError if the embeddings, divided by their lengths, differ."""
    difference = np.abs(unit_length(expected_ND) - unit_length(found_ND)).max()
    if not difference <= TOLERANCE:
        raise ValueError(f"embeddings of {name} differ from ours by {difference:.1e}, more than {TOLERANCE:.0e}.")


def admitted(run: Trained, folder: str, images: int) -> dict[str, Contestant]:
    """Those that can run and agree with ours. Both sizes of batches are compared, and so compiled before the turns."""
    count = min(images, BATCH_SIZE + images % BATCH_SIZE)
    found = {OURS: ours(run, folder)}
    expected_ND = found[OURS].whole(count)
    found[OURS].whole(min(images, BATCH_SIZE))
    for name, make in others(run, folder):
        try:
            contestant = make()
            found_ND = contestant.whole(count)
        except Exception as error:
            print(f"{name} is left out: {str(error).strip().splitlines()[0]}")
            continue
        check(expected_ND, found_ND, name)
        found[name] = contestant
    return found


def turn(contestant: Contestant, images: int) -> dict[str, float]:
    """Images per second as a whole, of decoding alone, and of the net alone."""
    ready = next(iter(contestant.pixels(min(images, BATCH_SIZE))))
    batches = min(NET_BATCHES, -(-images // BATCH_SIZE))
    calls: tuple[tuple[int, Callable[[], object]], ...] = (
        (images, lambda: contestant.whole(images)),
        (images, lambda: sum(1 for _ in contestant.pixels(images))),
        (batches * len(ready), lambda: [contestant.embed(ready) for _ in range(batches)]),
    )
    rates = {}
    for part, (count, call) in zip(PARTS, calls, strict=True):
        start = time.perf_counter()
        call()
        rates[part] = count / (time.perf_counter() - start)
    return rates


def processor() -> str:
    """Its name and the number of cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor()}, {cores} cores"


def table(rates: dict[str, list[dict[str, float]]]) -> list[str]:
    """One Markdown row per contestant. A ratio is our rate over the row's."""
    lines = ["| images/s | " + " | ".join(f"{part} | ours / this" for part in PARTS) + " |"]
    lines.append("|---" * (1 + 2 * len(PARTS)) + "|")
    for name in rates:
        cells = [name]
        for part in PARTS:
            own, this = ([turn[part] for turn in rates[who]] for who in (OURS, name))
            median = statistics.median(this)
            cells += [f"{median:.1f} ({min(this):.1f} to {max(this):.1f})", f"{statistics.median(own) / median:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--model", default="mobilenetv2_1.4", help="one that tests/torch_nets.py builds")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args(argv)
    run = trained(args.model, (args.height, args.width))
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), args.images, SMALLEST, LARGEST)
        contestants = admitted(run, folder, args.images)
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        for _ in range(args.turns):
            for name, contestant in contestants.items():
                rates[name].append(turn(contestant, args.images))
    print(f"{args.images} images at {args.height} x {args.width}, {args.model}, on {processor()}\n")
    print("\n".join(table(rates)))


if __name__ == "__main__":
    main()
