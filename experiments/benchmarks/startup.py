"""Times the start of a training up to its second step, with an empty and with a full cache of compiled programs.

    python -m experiments.benchmarks.startup [--height=128] [--width=64] [--turns=2]

Uses the paper's net on the synthetic people of configs/demo.py, and two cores if JAX computes on a CPU. Every start is
a process of its own, timed from the import of JAX to the end of the first step. In each turn the first start (cold)
finds an empty cache, the second (warm) finds the programs of the first. The third traces the layers' forms for all
platforms instead of its own alone (metabin_jax/runtime/platforms.py). Prints medians.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

STARTS = ("cold", "warm", "all forms")


def start(height: int, width: int, all_forms: bool) -> dict[str, float]:
    """Seconds of each part of a start, in a process that has not imported JAX yet."""
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def passed(part: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[part], clock = now - clock, now

    import jax

    from configs import demo
    from metabin_jax.training import train
    from metabin_jax.training.build import build, load_images, resolve

    passed("imports")
    config = demo.get_config()
    config.model.name, config.data.height, config.data.width = "mobilenetv2_1.4", height, width
    run = build(resolve(config))
    images = load_images(run.config, run.data.records)
    raw = jax.device_put(next(iter(train.read_batches(run, images, 0, 1))))
    passed("data")
    state = jax.block_until_ready(jax.device_put(run.init()))
    passed("state")
    if all_forms:
        train.tracing_for = lambda platform: contextlib.nullcontext()
    step = train.make_step(run)
    traced = step.trace(state, raw, run.key)
    passed("tracing")
    lowered = traced.lower()
    passed("lowering")
    lowered.compile()
    passed("compiling or loading")
    jax.block_until_ready(step(state, raw, run.key))
    passed("first step")
    return seconds


def start_apart(name: str, args: argparse.Namespace, cache: str) -> dict[str, float]:
    """`start` in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.startup", "--start", name]
    command += [f"--height={args.height}", f"--width={args.width}"]
    done = subprocess.run(
        command, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = json.loads(done.stdout.splitlines()[-1])
    return seconds | {"all": sum(seconds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--start", choices=STARTS, help="do this one here, and print JSON")
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.height, args.width, args.start == STARTS[-1])))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    results: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS}
    for _ in range(args.turns):
        with tempfile.TemporaryDirectory() as cache:
            for name in STARTS:
                results[name].append(start_apart(name, args, cache))
    median = {
        name: {part: statistics.median(turn[part] for turn in turns) for part in turns[0]}
        for name, turns in results.items()
    }
    # All forms make a different program, which no cache has: only the parts before compiling can be compared.
    median[STARTS[-1]] = {part: median[STARTS[-1]][part] for part in ("tracing", "lowering")}
    print(f"{'seconds':24}" + "".join(f"{name:>18}{'ratio':>8}" for name in STARTS))
    for part, cold in median["cold"].items():
        cells = [f"{each[part]:18.2f}{each[part] / cold:8.2f}" for each in median.values() if part in each]
        print(f"{part:24}" + "".join(cells))


if __name__ == "__main__":
    main()
