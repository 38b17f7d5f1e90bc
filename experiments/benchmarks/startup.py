"""Times the start of a training up to the end of its first step, as it is and in ways that might be faster.

    python -m experiments.benchmarks.startup [--height=128] [--width=64] [--turns=2] [--only NAME ...]

Uses the paper's net on the synthetic people of configs/demo.py, and two cores if JAX computes on a CPU. Every start is
a process of its own, timed from the import of JAX, with an empty cache of compiled programs. Prints medians.

cold: as `metabin train`. warm: as cold, with the programs that the cold start before it kept. all forms: traces the
layers' forms for all platforms (metabin_jax/runtime/platforms.py). state alone: the step returns no metrics. low
optimisation: XLA compiles without its slow passes. no repeats: a net without the blocks that repeat the one before, the
most that a scan over repeated blocks could save. at once: the step compiles in a thread of its own, beside reading the
data and making the state.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

STARTS = ("cold", "warm", "all forms", "state alone", "low optimisation", "no repeats", "at once")
LOW = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def start(height: int, width: int, way: str) -> dict[str, float]:
    """Seconds of each part of a start, in a process that has not imported JAX yet. way: one of STARTS."""
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def passed(part: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[part], clock = now - clock, now

    import jax

    from configs import demo
    from metabin_jax import models
    from metabin_jax.models import mobilenetv2
    from metabin_jax.training import train
    from metabin_jax.training.build import build, load_images, resolve
    from metabin_jax.training.sketch import batch_shapes

    passed("imports")
    config = demo.get_config()
    config.model.name, config.data.height, config.data.width = "mobilenetv2_1.4", height, width
    if way == "no repeats":  # of a stage's blocks, the first two differ from each other
        stages = tuple(stage._replace(blocks=min(stage.blocks, 2)) for stage in mobilenetv2.STAGES)
        models.create = functools.partial(models.create, stages=stages)
    if way == "all forms":
        train.tracing_for = lambda platform: contextlib.nullcontext()
    run = build(resolve(config))
    step = train.make_step(run)
    if way == "state alone":
        whole = step
        step = jax.jit(lambda *arguments: whole(*arguments)[0], donate_argnums=0)

    def first_batch() -> object:
        images = load_images(run.config, run.data.records)
        return jax.device_put(next(iter(train.read_batches(run, images, 0, 1))))

    def first_state() -> object:
        return jax.block_until_ready(jax.device_put(run.init()))

    if way == "at once":
        with ThreadPoolExecutor() as pool:
            shapes = jax.eval_shape(run.init), batch_shapes(run), run.key
            program = pool.submit(lambda: step.trace(*shapes).lower().compile())
            raw, state, compiled = first_batch(), first_state(), program.result()
        passed("data, state and compiling")
    else:
        raw = first_batch()
        passed("data")
        state = first_state()
        passed("state")
        traced = step.trace(state, raw, run.key)
        passed("tracing")
        lowered = traced.lower()
        passed("lowering")
        compiled = lowered.compile(LOW if way == "low optimisation" else None)
        passed("compiling or loading")
    after = jax.block_until_ready(compiled(state, raw, run.key))
    passed("first step")
    jax.block_until_ready(compiled(after if way == "state alone" else after[0], raw, run.key))
    passed("second step")
    return seconds


def start_apart(name: str, args: argparse.Namespace, cache: str) -> dict[str, float]:
    """`start` in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.startup", "--start", name]
    command += [f"--height={args.height}", f"--width={args.width}"]
    done = subprocess.run(
        command, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = json.loads(done.stdout.splitlines()[-1])
    second = seconds.pop("second step")
    return seconds | {"all": sum(seconds.values()), "second step": second}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=STARTS, default=STARTS, help="and cold, which the ratios need")
    parser.add_argument("--start", choices=STARTS, help="do this one here, and print JSON")
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.height, args.width, args.start)))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    results: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS if name in {"cold", *args.only}}
    for _ in range(args.turns):
        with tempfile.TemporaryDirectory() as kept:
            for name, starts in results.items():
                with tempfile.TemporaryDirectory() as empty:
                    starts.append(start_apart(name, args, kept if name in ("cold", "warm") else empty))
    median = {
        name: {part: statistics.median(turn[part] for turn in turns) for part in turns[0]}
        for name, turns in results.items()
    }
    from experiments.tables import markdown  # late: the start that is timed imports nothing before JAX

    cold = median.pop("cold")
    body = []
    for part, of_cold in cold.items():
        cells = [f"{way[part]:.2f} ({way[part] / of_cold:.2f})" if part in way else "" for way in median.values()]
        body.append([part, f"{of_cold:.2f}", *cells])
    print(markdown(["seconds (ratio to cold)", "cold", *median], body))


if __name__ == "__main__":
    main()
