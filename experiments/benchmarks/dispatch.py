"""Times training with the set kept on the device and with several steps per dispatch, as ratios from one run.

    python -m experiments.benchmarks.dispatch [--steps-per-dispatch=8] [--dispatches=2] [--turns=3]

Uses the net, images and batches of configs/demo.py on one device. Three contestants take turns at the same steps of the
same training: images from the host, a resident set with one step per dispatch, and a resident set with several. None
writes logs or checkpoints. Ratios are of medians. The last column is the difference of each state from the first's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from configs import demo
from metabin_jax.algorithm import TrainState
from metabin_jax.data import resident
from metabin_jax.runtime.compilation import use_compilation_cache
from metabin_jax.training.build import Run, build, load_images, resolve
from metabin_jax.training.train import make_step, read_batches


def trainer(run: Run, images: np.ndarray) -> Callable[[int, int], TrainState]:
    """A function (start, stop) that continues the training by the steps start to stop - 1 and returns the state."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state, step_fn = jax.device_put(run.init(), sharding), make_step(run)
    more: tuple[Any, ...] = (run.key,)
    if run.config.data.resident:
        more += (resident.put(images, run.data.pid, run.data.domain, sharding),)
        step_fn = resident.several_steps(step_fn)

    def train(start: int, stop: int) -> TrainState:
        nonlocal state
        for raw in read_batches(run, images, start, stop):
            state, _ = step_fn(state, jax.device_put(raw, sharding), *more)
        return jax.block_until_ready(state)

    return train


def difference(state: TrainState, other: TrainState) -> float:
    """The largest difference of two states, relative to the largest value of the leaf."""
    pairs = zip(jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(jax.device_get(other)), strict=True)
    return max(float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps-per-dispatch", type=int, default=8)
    parser.add_argument("--dispatches", type=int, default=2, help="timed in each turn")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    use_compilation_cache()
    config = resolve(demo.get_config())
    steps = args.dispatches * args.steps_per_dispatch
    config.steps_per_epoch = steps  # so that no dispatch is cut short
    images = load_images(config, build(config).data.records)
    names = ("host", "resident", f"resident, {args.steps_per_dispatch} steps a dispatch")
    trainers: dict[str, Callable[[int, int], TrainState]] = {}
    for name, is_resident, per_dispatch in zip(
        names, (False, True, True), (1, 1, args.steps_per_dispatch), strict=True
    ):
        config.data.resident, config.steps_per_dispatch = is_resident, per_dispatch
        trainers[name] = trainer(build(config.copy_and_resolve_references()), images)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    states: dict[str, Any] = {}
    for turn in range(args.turns + 1):
        for name, train in trainers.items():
            start = time.perf_counter()
            states[name] = train(turn * steps, (turn + 1) * steps)
            if turn:  # the first one compiles
                seconds[name].append((time.perf_counter() - start) / steps)
    first = statistics.median(seconds[names[0]])
    print(f"configs/demo.py on {jax.devices()[0].device_kind}, {steps} steps a turn")
    print(f"{'':34}{'ms a step':>10}{'ratio':>8}{'difference':>12}")
    for name, values in seconds.items():
        median, apart = statistics.median(values), difference(states[name], states[names[0]])
        print(f"{name:34}{1000 * median:10.1f}{median / first:8.3f}{apart:12.1e}")


if __name__ == "__main__":
    main()
