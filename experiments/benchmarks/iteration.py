"""Time and peak memory of one iteration against the PyTorch twin: ratios from one run.

    python -m experiments.benchmarks.iteration           (needs PyTorch: pip install -e '.[torch]')

Uses the paper's net and batches (80 + 48 + 32 images), float32, on two CPU threads. The twin is tests/torch_twin.py in
its natural form: nn.BatchNorm2d and nn.InstanceNorm2d, default layout. Both run a second time with the settings of
glibc's malloc that suit them (docs/performance.md). Contestants take turns in processes of their own, so that a slow
spell of the machine hits all of them; ratios are of medians. Memory has two columns. "process" is the peak resident
size of the whole process. "iterations" is the part that the iterations add to the libraries, model, data and program;
it grows with images and batch. Linux only.

--other=PYTHON adds ours as another environment computes it, such as one with a newer JAX. --only measures contestants
whose names have this text, relative to the first of them.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

# glibc's malloc, by default or set: the twin then keeps freed memory, ours then takes memory in huge pages.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
CONTESTANTS = {
    "torch first order": {},
    "torch first order, malloc set": KEPT,
    "ours first order": {},
    "ours first order, malloc set": HUGE,
    "ours exact": {},
    "ours exact, malloc set": HUGE,
}
OTHER = "ours first order, malloc set, the other JAX", "ours exact, malloc set, the other JAX"
NUM_IDS = 1000


def batches(height: int, width: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """X_B, X_S, X_T: image float32 [N, H, W, 3], pid and domain int32 [N]; 4 identities x 4 images of each domain."""
    rng = np.random.default_rng(0)
    pid, domain = np.arange(80, dtype=np.int32) // 4, np.arange(80, dtype=np.int32) // 16
    rows = (slice(0, 80), slice(0, 48), slice(48, 80))
    images = [rng.normal(size=(len(pid[r]), height, width, 3)).astype(np.float32) for r in rows]
    return [(image, pid[r], domain[r]) for image, r in zip(images, rows, strict=True)]


def torch_iteration(height: int, width: int) -> Callable[[], None]:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import torch
    import torch_twin as twin

    torch.set_num_threads(2)
    trainer = twin.Trainer(twin.build("mobilenetv2_1.4", NUM_IDS, "metabin"), lambda step: 0.01, lambda step: 0.1)
    parts = [
        twin.Batch(torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(), *map(torch.from_numpy, (pid, domain)))
        for image, pid, domain in batches(height, width)
    ]
    parts = [part._replace(pid=part.pid.long(), domain=part.domain.long()) for part in parts]
    return lambda: trainer.iteration(*parts)


def our_iteration(height: int, width: int, first_order: bool) -> Callable[[], None]:
    import jax
    import optax

    from metabin_jax import models
    from metabin_jax.algorithm import Batch, MetaBIN
    from metabin_jax.runtime.compilation import compile_ahead

    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, 0.9))
    metabin = MetaBIN(models.create("mobilenetv2_1.4", NUM_IDS), optimizer, beta=0.1, first_order=first_order)
    parts = [Batch(*map(jax.device_put, part)) for part in batches(height, width)]
    state = metabin.init(jax.random.key(0), parts[0].image)
    step = compile_ahead(jax.jit(metabin.train_step, donate_argnums=0), state, *parts)

    def iterate() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, *parts))

    return iterate


def measure(contestant: str, height: int, width: int, iterations: int) -> dict:
    """Seconds of each iteration after the first, the peak resident size in MiB, and the iterations' part of it."""
    if contestant.startswith("torch"):
        iterate = torch_iteration(height, width)
    else:
        iterate = our_iteration(height, width, first_order="first order" in contestant)
    before = resident_mib()
    seconds = []
    for _ in range(iterations + 1):
        start = time.perf_counter()
        iterate()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "process": peak_mib(), "iterations": peak_mib() - before}


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_apart(contestant: str, args: argparse.Namespace, cache: str) -> dict:
    """`measure` in a process of its own, on two cores."""
    command = [
        args.other if contestant in OTHER else sys.executable,
        "-m",
        "experiments.benchmarks.iteration",
        "--contestant",
        contestant,
    ]
    command += [f"--height={args.height}", f"--width={args.width}", f"--iterations={args.iterations}"]
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **CONTESTANTS.get(contestant, HUGE),
    }
    done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=3, help="timed in each turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--other", metavar="PYTHON", help="the interpreter of another environment")
    parser.add_argument("--only", default="", metavar="TEXT", help="of the contestants' names")
    parser.add_argument("--contestant", choices=[*CONTESTANTS, *OTHER], help="measure this one here, and print JSON")
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(measure(args.contestant, args.height, args.width, args.iterations)))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    names = [name for name in [*CONTESTANTS, *(OTHER if args.other else ())] if args.only in name]
    results: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            if name.startswith("ours"):  # compiles
                measure_apart(name, argparse.Namespace(**vars(args) | {"iterations": 0}), cache)
        for _ in range(args.turns):
            for name in names:
                results[name].append(measure_apart(name, args, cache))
    columns = {
        "s/iteration": {
            name: statistics.median(s for t in turns for s in t["seconds"]) for name, turns in results.items()
        },
        "process MiB": {name: max(turn["process"] for turn in turns) for name, turns in results.items()},
        "iterations MiB": {name: max(turn["iterations"] for turn in turns) for name, turns in results.items()},
    }
    print(" " * 45 + "".join(f"{title:>16}{'ratio':>8}" for title in columns))
    for name in names:
        cells = [(values[name], values[name] / values[names[0]]) for values in columns.values()]
        print(f"{name:45}" + "".join(f"{value:16.2f}{ratio:8.2f}" for value, ratio in cells))


if __name__ == "__main__":
    main()
