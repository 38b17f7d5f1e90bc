"""Compiles a training step for a GPU that this machine need not have, and reports what the step needs there."""

import importlib.util
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from metabin_jax.runtime.devices import Placement, say, shapes_on
from metabin_jax.runtime.errors import UserError, needs
from metabin_jax.training.build import Run
from metabin_jax.training.sketch import batch_shapes, describe
from metabin_jax.training.train import check_divisible, make_step

# Autotuning would time kernels on the card.
OPTIONS = {"xla_gpu_autotune_level": 0}
USABLE = 0.75  # of a card's memory: what JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
HEADER = ("variant", "peak GiB", "arguments", "temporaries", "fits", "compiled in s")
# Looked for in the lines of a compiled program. S(5) is XLA's name of the host's memory in a layout.
PROBLEMS = {
    "float64": re.compile(r"\b(f64|c128)\["),
    "a transfer to or from the host": re.compile(
        r"custom_call_target=\"[^\"]*(callback|host)|S\(5\)|\b(infeed|outfeed|send|recv)(-start|-done)?\(",
        re.IGNORECASE,
    ),
}


class Target(NamedTuple):
    """A card: XLA's description of it, its full name, and its memory in bytes."""

    text: str
    title: str
    memory: int


class Needs(NamedTuple):
    """Of one compiled step, on one device: bytes of arguments and temporaries, and the seconds that compiling took."""

    arguments: int
    temporaries: int
    seconds: float

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries


def targets() -> dict[str, Target]:
    """The cards that this package describes, by name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.txtpb")):
        text = path.read_text(encoding="utf-8")
        title, memory = (
            re.findall(rf"{key}: \"?([^\"\n]+)", text)[0] for key in ("device_description_str", "memory_size")
        )
        found[path.stem] = Target(text, title, int(memory))
    return found


def find_target(name: str) -> Target:
    """Raises UserError for a card without a description, and if JAX's compiler for CUDA is not installed."""
    cards = targets()
    if name not in cards:
        raise UserError(f"--target must be one of {', '.join(cards)}; got {name!r}")
    if importlib.util.find_spec("jax_cuda13_plugin") is None:  # either will do
        needs("metabin plan", "cuda", "jax_cuda12_plugin", otherwise="; no GPU is needed")
    return cards[name]


def host_of(target: Target, devices: int = 1) -> Placement:
    """Over cards of one host, which exist only as a description."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=target.text, topology=f"1x1x{devices}"
    )
    return Placement.over(topology.devices)


def compile_step(run: Run, target: Target, devices: int = 1) -> Any:
    """The training step of `run`, compiled for cards of one host. As in training, each has the whole state and its
    share of the rows of each batch."""
    host, step = host_of(target, devices), make_step(run, "gpu")
    state, key = shapes_on(host.whole, (jax.eval_shape(run.init), jax.eval_shape(lambda: run.key)))
    jitted: Any = step
    return jitted.lower(state, shapes_on(host.by_rows, batch_shapes(run)), key).compile(compiler_options=OPTIONS)


def problems(hlo: str) -> list[str]:
    """Float64, and what moves between host and device, in the text of a compiled program: a phrase each."""
    found = []
    for line in hlo.splitlines():
        name, is_operation, rest = line.partition(" = ")
        operation, _, metadata = rest.partition(", metadata=")
        for what, pattern in PROBLEMS.items():
            if is_operation and pattern.search(operation):
                origin = re.search(r'op_name="([^"]*)"', metadata)
                found.append(f"{what} in {name.split()[-1].lstrip('%')} ({origin[1] if origin else 'of the compiler'})")
    return found


def measure(run: Run, target: Target, devices: int = 1) -> Needs:
    """Raises UserError if the step computes in float64 or exchanges data with the host."""
    start = time.perf_counter()
    compiled = compile_step(run, target, devices)
    seconds = time.perf_counter() - start
    if found := problems(compiled.as_text()):
        raise UserError(f"the training step must not contain {found[0]}; {len(found)} such operations were found")
    memory = compiled.memory_analysis()
    # A donated argument is an output too, and lies there once.
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Needs(arguments, memory.temp_size_in_bytes, seconds)


def plan(runs: Sequence[tuple[str, Run]], target: Target, devices: int = 1) -> Iterator[str]:
    """The report, line by line: a Markdown table with a row for each named run, about one of the devices.

    Raises UserError for a number of devices that the batches do not divide over, and as `measure`.
    """
    if devices < 1:
        raise UserError(f"--devices must be 1 or more, got {devices}")
    _, first = runs[0]
    check_divisible(first, devices)
    count, about_one = (f"{devices} x ", ", of which the table shows one") if devices > 1 else ("", "")
    yield (
        f"{describe(first)}, on {count}{target.title} with {_gib(target.memory)} GiB{about_one} (JAX {jax.__version__})"
    )
    yield ""
    yield f"| {' | '.join(HEADER)} |"
    yield f"|{'---|' * len(HEADER)}"
    for name, run in runs:
        say(f"compiling {name}, which takes minutes for a large net")
        needs = measure(run, target, devices)
        fits = "yes" if needs.peak <= USABLE * target.memory else "no"
        sizes = map(_gib, (needs.peak, needs.arguments, needs.temporaries))
        yield f"| {' | '.join((name, *sizes, fits, f'{needs.seconds:.0f}'))} |"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
