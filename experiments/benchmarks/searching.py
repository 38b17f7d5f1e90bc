"""Seconds of a `metabin search` for one picture, as people type it, and where they go.

    python -m experiments.benchmarks.searching [--images=4115] [--turns=5]

Makes a run of the net of configs/folder.py, untrained, and a gallery of random features in a temporary folder. The
first search compiles; the others find its programs. Each is a process of its own. Prints seconds by the clock, and of
processor time (user and system), which other work on the machine changes less: median, minimum and maximum.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from configs import folder as config_folder
from metabin_jax.evaluation.distances import unit_length
from metabin_jax.retrieval import features
from metabin_jax.training import train, trained
from metabin_jax.training.build import build, resolve
from metabin_jax.training.checkpoint import Checkpoints

IMPORTS = "import metabin_jax.training.trained, metabin_jax.retrieval.encoder, metabin_jax.report.search_page"


def make_run(root: Path) -> Path:
    """The workdir of an untrained net; its three domains have one image of four identities each."""
    config = config_folder.get_config()
    config.data.path, config.data.cache_dir = str(root / "pictures"), str(root / "cache")
    rng = np.random.default_rng(0)
    for domain in ("a", "b", "c"):
        (root / "pictures" / domain).mkdir(parents=True)
        for number in range(16):
            image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
            image.save(root / "pictures" / domain / f"{number // 4 + 1}_c{number % 4 + 1}_{number}.jpg")
    run = build(resolve(config))
    train.describe_run(run.config, run.data.records, root / "run")
    with Checkpoints(root / "run", scored=False) as checkpoints:
        checkpoints.save(run.init())
    return root / "run"


def seconds(command: Sequence[str], **environment: str) -> tuple[float, float]:
    """By the clock, and of processor time, of a process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    taken, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4115)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        run = trained.load(make_run(root))
        rng = np.random.default_rng(0)
        width = len(run.variables["params"]["classifier"]["kernel"])
        feature_GD = unit_length(rng.normal(size=(args.images, width)).astype(np.float32))
        names = np.array([f"/gallery/{number}.jpg" for number in range(args.images)])
        pid, camid = np.array(["1"] * args.images), np.zeros(args.images, np.int64)
        gallery = features.Features(names, feature_GD, pid, camid, np.array(["d"] * args.images), run.made_by)
        features.write(root / "gallery.npz", gallery)
        search = [
            sys.executable,
            "-m",
            "metabin_jax",
            "search",
            f"--model={run.workdir}",
            f"--gallery={root}/gallery.npz",
        ]
        search += [f"--query={sorted((root / 'pictures/a').iterdir())[0]}"]
        parts = {"Python starts and imports": [sys.executable, "-c", IMPORTS], "metabin search": search}
        cache = {"JAX_COMPILATION_CACHE_DIR": str(root / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        rows = [("metabin search, the first time", [seconds(search, **cache)])]
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
        for _ in range(args.turns):
            for name, command in parts.items():
                taken[name].append(seconds(command, **cache))
        rows += taken.items()
    print(f"{args.images:,} images in the gallery, {os.cpu_count()} cores")
    print("| | seconds | processor seconds |\n|---|---|---|")
    for name, values in rows:
        cells = [
            f"{statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f})" for own in zip(*values, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
