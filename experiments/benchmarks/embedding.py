"""Times `metabin embed` against its two parts, decoding the images and running the net.

    python -m experiments.benchmarks.embedding [--images=20000] [--height=64] [--width=32] [--turns=3]

Writes random JPEGs to a temporary folder. Each turn times, in one process, `embed_images` and its parts: decoding
alone, with as many threads, and the net alone, on one batch again and again. The ratio is of medians. On a CPU,
decoding and net share the cores: a pipeline without overhead has the ratio 1, or less if one part leaves cores idle.
With an accelerator, the pipeline can be as fast as the slower of its parts.
"""

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from metabin_jax import models
from metabin_jax.evaluation.embedding import embed_batches
from metabin_jax.retrieval.encoder import embed_images, read_batches
from metabin_jax.retrieval.listing import list_images
from metabin_jax.training.config import metabin
from metabin_jax.training.trained import Trained

NUM_IDS = 100
BATCH_SIZE = 128


def draw(folder: Path, count: int, height: int, width: int) -> None:
    """JPEGs of smooth noise, about as large as a picture's."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):  # the progress line
        call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    size = (args.height, args.width)
    model = models.create("small", NUM_IDS)
    variables: Any = model.init(jax.random.key(0), np.zeros((1, *size, 3), np.float32), train=False)
    config = metabin()
    config.data.height, config.data.width = size
    config.eval.batch_size = BATCH_SIZE
    run = Trained(Path(), config, 0, None, model, variables)
    batch = np.zeros((BATCH_SIZE, *size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), args.images, *size)
        listed = list_images(folder)
        paths = [image.path for image in listed]
        num_batches = -(-args.images // BATCH_SIZE)
        calls: dict[str, Callable[[], object]] = {
            "decode": lambda: sum(1 for _ in read_batches(paths, size, BATCH_SIZE)),
            "forward": lambda: list(embed_batches(model, variables, itertools.repeat(batch, num_batches), BATCH_SIZE)),
            "pipeline": lambda: embed_images(run, listed),
        }
        embed_images(run, listed[:BATCH_SIZE])  # compiles
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(args.turns):
            for name, call in calls.items():
                taken[name].append(seconds(call))
    median = {name: statistics.median(values) for name, values in taken.items()}
    print(f"{args.images} images of {args.height} x {args.width} on {jax.devices()[0].device_kind}")
    for name, values in taken.items():
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"{name:10}{median[name]:8.2f} s{args.images / median[name]:10.0f} images/s   ({each})")
    print(f"pipeline / (decode + forward): {median['pipeline'] / (median['decode'] + median['forward']):.3f}")


if __name__ == "__main__":
    main()
