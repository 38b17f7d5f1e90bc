"""Time and peak memory of `retrieval_metrics` on random features of the size of Market-1501, and of a million.

    python -m experiments.benchmarks.evaluation [--million]

The reference is the usual loop: for each query its distances to the normalised gallery, a stable argsort, and the
average precision in Python, here over the matches only. It is timed on 200 queries and scaled to all. A second
reference gets its distances from one multiplication for all queries, which then takes most of the time of both, so the
ranking alone is compared too. Two cores; each time is the least of three runs.

`--million` prints by how much the peak resident size of the process rises above the size with features and labels.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from metabin_jax.evaluation import distance, rank_metrics, retrieval_metrics
from metabin_jax.evaluation.distances import unit_length

# Queries, gallery, D.
MARKET = (3368, 15_913, 1792)
MILLION = (1000, 1_000_000, 512)
TIMED_QUERIES = 200
RANKS = (1, 5, 10)


def loop_over_queries(
    distances: Iterable[NDArray],
    query_pid: NDArray,
    gallery_pid: NDArray,
    query_camid: NDArray,
    gallery_camid: NDArray,
) -> tuple[list[float], float]:
    """CMC at RANKS and mAP from each query's distances [G], one sort of the gallery for each."""
    hits, precisions = [], []
    for query, distance_G in enumerate(distances):
        order = np.argsort(distance_G, kind="stable")
        same_pid = gallery_pid[order] == query_pid[query]
        is_match = same_pid[~(same_pid & (gallery_camid[order] == query_camid[query]))]
        if is_match.any():
            hits.append([is_match[:k].any() for k in RANKS])
            ranks = (np.flatnonzero(is_match) + 1).tolist()
            precisions.append(sum(found / rank for found, rank in enumerate(ranks, start=1)) / len(ranks))
    return np.mean(hits, axis=0).tolist(), float(np.mean(precisions))


def random_case(
    num_query: int, num_gallery: int, width: int
) -> tuple[NDArray, NDArray, tuple[NDArray, NDArray, NDArray, NDArray]]:
    """Features of random directions, with about 20 images of each identity in the gallery and 6 cameras."""
    rng = np.random.default_rng([0])
    query_QD = rng.standard_normal((num_query, width), np.float32)
    gallery_GD = rng.standard_normal((num_gallery, width), np.float32)
    pids, cameras = num_gallery // 20, 6
    query_pid, gallery_pid = rng.integers(0, pids, num_query), rng.integers(0, pids, num_gallery)
    query_camid, gallery_camid = rng.integers(0, cameras, num_query), rng.integers(0, cameras, num_gallery)
    return query_QD, gallery_GD, (query_pid, gallery_pid, query_camid, gallery_camid)


def seconds(call: Callable[[], object]) -> float:
    """The least of three runs."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def compare_times() -> None:
    query_QD, gallery_GD, labels = random_case(*MARKET)
    some_QD = query_QD[:TIMED_QUERIES]
    some_labels = (labels[0][:TIMED_QUERIES], labels[1], labels[2][:TIMED_QUERIES], labels[3])
    scale = len(query_QD) / len(some_QD)
    unit_QD, unit_GD = unit_length(some_QD), unit_length(gallery_GD)
    loop = scale * seconds(lambda: loop_over_queries((1 - unit_GD @ query_D for query_D in unit_QD), *some_labels))
    multiplication = seconds(lambda: distance(query_QD, gallery_GD))
    distance_QG = distance(query_QD, gallery_GD)
    loop_ranking = scale * seconds(lambda: loop_over_queries(distance_QG[:TIMED_QUERIES], *some_labels))
    our_ranking = seconds(lambda: rank_metrics(distance_QG, *labels))
    ours = seconds(lambda: retrieval_metrics(query_QD, gallery_GD, *labels))

    print(" x ".join(map(str, MARKET)))
    print(f"{'':40}{'loop s':>8}{'ours s':>8}{'ratio':>8}")
    for name, reference, taken in (
        ("features, loop over queries", loop, ours),
        ("features, one multiplication and loop", multiplication + loop_ranking, ours),
        ("ranking of given distances", loop_ranking, our_ranking),
    ):
        print(f"{name:40}{reference:8.2f}{taken:8.2f}{taken / reference:8.3f}")


def measure_memory() -> None:
    query_QD, gallery_GD, labels = random_case(*MILLION)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, start = peak(), time.perf_counter()
    retrieval_metrics(query_QD, gallery_GD, *labels)
    taken = time.perf_counter() - start
    print(f"{' x '.join(map(str, MILLION))}: {taken:.1f} s, peak {peak() - before:.0f} MiB beyond the features")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", action="store_true", help="the memory of a gallery of a million instead")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    if parser.parse_args().million:
        measure_memory()
    else:
        compare_times()


if __name__ == "__main__":
    main()
