"""Where an iteration spends its time on a CPU: one core, by the kind of the compiler's operations.

    python -m experiments.benchmarks.kernels [--height=128] [--width=64]       some five minutes

The paper's net and batches (80 + 48 + 32 images), float32, first order. A trace of one iteration names the compiled
program's operations; what each computes is read from the program's text. One core, because the spans of several
threads overlap. The rate of the matrix products is compared with that of one large product on the same core.
"""

import argparse
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from metabin_jax.runtime.huge_pages import start_again

SIZE = 2048  # of the large product
# A kind -> the operations of which one makes a fusion that kind; the first that fits.
KINDS = {
    "matrix products": {"dot", "convolution"},
    "reductions (moments, gradients of kernels)": {"reduce", "reduce-window"},
}
COPIES = {"copy", "transpose", "concatenate", "pad", "slice", "gather", "dynamic-slice"}
FREE = {"parameter", "constant", "bitcast", "broadcast", "tuple", "get-tuple-element"}
CONTROL = {"while", "call", "conditional"}  # whose spans hold those of their operations


class Operation(NamedTuple):
    """kind: of KINDS, "copies" or "elementwise". flops: of its matrix products, at each execution."""

    kind: str
    flops: float


def operations(hlo: str) -> dict[str, Operation]:
    """Name -> operation, of all computations in the text of a compiled program, without those of CONTROL."""
    lines: dict[str, list[re.Match[str]]] = defaultdict(list)  # computation -> its instructions
    shapes: dict[str, list[int]] = {}
    computation = ""
    for line in hlo.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = opened[1]
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)", line):
            lines[computation].append(found)
            if array := re.match(r"\w+\[([\d,]*)\]", found[2]):
                shapes[found[1]] = [int(size) for size in array[1].split(",") if size]

    def flops(found: re.Match[str]) -> float:
        if found[3] != "dot":
            return 0.0
        left = shapes[re.findall(r"%([\w.\-]+)", found[4])[0]]
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", found[4])
        assert summed
        return 2.0 * math.prod(shapes[found[1]]) * math.prod(left[int(axis)] for axis in summed[1].split(","))

    instructions = [found for body in lines.values() for found in body]
    fused = {found[1]: re.findall(r"calls=%?([\w.\-]+)", found[4])[0] for found in instructions if found[3] == "fusion"}
    inside = {part[1] for computation in fused.values() for part in lines[computation]}
    named = {}
    for found in instructions:
        parts = lines[fused[found[1]]] if found[1] in fused else [found]
        names = {part[3] for part in parts} - FREE
        other = "copies" if names and names <= COPIES else "elementwise"
        kind = next((kind for kind, ops in KINDS.items() if names & ops), other)
        if found[3] not in CONTROL and found[1] not in inside:
            named[found[1]] = Operation(kind, sum(map(flops, parts)))
    return named


def table(spans: Mapping[str, float], counts: Mapping[str, int], named: Mapping[str, Operation], peak: float) -> str:
    """spans: milliseconds of each operation, all executions. peak: flops a second of the large product."""
    from experiments.tables import markdown

    by_kind: dict[str, float] = defaultdict(float)
    for name, milliseconds in spans.items():
        by_kind[named[name].kind] += milliseconds
    whole = sum(by_kind.values())
    heaviest_first = sorted(by_kind.items(), key=lambda item: -item[1])
    body = [[kind, f"{length:.0f}", f"{100 * length / whole:.0f}"] for kind, length in heaviest_first]
    flops = sum(counts[name] * named[name].flops for name in spans)
    rate = flops / by_kind["matrix products"] * 1000
    return (
        markdown(["on one core", "ms an iteration", "share, %"], [*body, ["all", f"{whole:.0f}", "100"]])
        + f"\n\nThe matrix products have {flops / 1e9:.0f} GFLOP and run at {rate / 1e9:.0f} GFLOP/s, "
        f"{rate / peak:.2f} of the rate of a product of {SIZE} x {SIZE}. The heaviest single operation takes "
        f"{100 * max(spans.values()) / whole:.1f} % of the time, the ten heaviest "
        f"{100 * sum(sorted(spans.values())[-10:]) / whole:.0f} %."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--tiny", action="store_true", help="a tiny net, to see that it runs")
    args = parser.parse_args()
    start_again()  # with huge pages, as `metabin train`
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):  # before JAX counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks.gpu_workers import build_run, random_images, traced
    from metabin_jax.runtime.compilation import compile_ahead
    from metabin_jax.training.train import make_step, read_batches

    run = build_run({"dtype": "float32", "tiny": args.tiny}, args.height, args.width)
    raw = jax.device_put(next(iter(read_batches(run, random_images(run), 0, 1))))
    state = run.init()
    program = compile_ahead(make_step(run), state, raw, run.key)
    state, _ = jax.block_until_ready(program(state, raw, run.key))
    planes = traced(lambda: program(state, raw, run.key), 1).planes
    named = operations(program.as_text())
    spans, counts = defaultdict(float), defaultdict(int)
    for event in (event for plane in planes for line in plane.lines for event in line.events):
        if event.name in named:
            spans[event.name] += event.duration_ns / 1e6
            counts[event.name] += 1
    product = jax.jit(jnp.dot)
    square = jnp.ones((SIZE, SIZE))
    jax.block_until_ready(product(square, square))
    began = time.perf_counter()
    for _ in range(5):
        jax.block_until_ready(product(square, square))
    print(table(spans, counts, named, 5 * 2 * SIZE**3 / (time.perf_counter() - began)))


if __name__ == "__main__":
    main()
