"""How fast a gallery answers who is on a picture: seconds per query, warm, and to open its identities once.

    python -m experiments.benchmarks.identify [--images 100000] [--width 512]

Features are random, ten images of each identity.
"""

import argparse
import statistics
import time

import numpy as np

from metabin_jax.retrieval.features import Features
from metabin_jax.retrieval.gallery import Identities

TURNS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()
    feature_GD = np.random.default_rng(0).normal(size=(args.images, args.width)).astype(np.float32)
    feature_GD /= np.linalg.norm(feature_GD, axis=1, keepdims=True)
    row_G = np.arange(args.images)
    text_G = np.char.add("image ", row_G.astype(str))
    gallery = Features(text_G, feature_GD, (row_G // 10).astype(str), row_G % 2, np.full(args.images, "d"), {})
    began = time.perf_counter()
    identities = Identities(gallery)
    opened, seconds = time.perf_counter() - began, []
    for row in range(TURNS + 1):
        began = time.perf_counter()
        identities.nearest(feature_GD[row : row + 1])
        seconds.append(time.perf_counter() - began)
    warm = seconds[1:]
    print(f"{args.images:,} images x {args.width}: opened in {opened:.2f} s; the first query takes {seconds[0]:.2f} s")
    print(f"warm query: median {statistics.median(warm):.3f} s, {min(warm):.3f} to {max(warm):.3f} of {TURNS}")


if __name__ == "__main__":
    main()
