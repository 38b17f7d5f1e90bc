"""Compiles the training step of a config for a GPU that need not be there, and says what it needs."""

import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from metabin_jax.data.dataset import TrainingSet
from metabin_jax.data.pipeline import RawBatch, StepBatches
from metabin_jax.norm import _Norm
from metabin_jax.plan.communication import LINKS, Work, explain, find_collectives
from metabin_jax.plan.program import Buffer, Program
from metabin_jax.runtime.devices import Placement, shapes_on
from metabin_jax.runtime.errors import UserError
from metabin_jax.training import config as configuration
from metabin_jax.training.build import Run, build_learner, build_samplers
from metabin_jax.training.train import check_divisible, make_step

# Autotuning would time kernels on the card, which is not there.
OPTIONS = {"xla_gpu_autotune_level": 0}
USABLE = 0.75  # of a card's memory, which JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
HEADER = (
    "variant", "peak GiB", "arguments", "temporaries", "fits", "moved GB", "norms, forward GB", "of their floor",
    "kernels", "library convolutions",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """A card: its name in metabin plan, XLA's description of it, its full name, its memory in bytes and the memory's
    bandwidth in bytes a second, and which of communication.LINKS it has to others of its kind."""

    name: str
    text: str
    title: str
    memory: int
    bandwidth: int
    link: str


@dataclasses.dataclass(frozen=True)
class Needs:
    """Of one compiled step and one device, in bytes but for the numbers of kernels and of convolutions by cuDNN.

    norms: what norm layers move in the forward passes (Program.norm_traffic); floor: two reads of every map and one
    write. largest: what is live where the temporaries are at their peak.
    """

    arguments: int
    temporaries: int
    work: Work
    norms: int
    floor: int
    convolutions: int
    largest: list[Buffer]

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries


def targets() -> dict[str, Target]:
    """The cards that this package describes, by name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.txtpb")):
        text = path.read_text(encoding="utf-8")
        keys = ("device_description_str", "memory_size", "memory_bandwidth", "# link")
        title, memory, bandwidth, link = (re.findall(rf"{key}: \"?([^\"\n]+)", text)[0] for key in keys)
        assert link in LINKS, path
        found[path.stem] = Target(path.stem, text, title, int(memory), int(bandwidth), link)
    return found


def find_target(name: str) -> Target:
    """Raises ValueError for a card that is not described, and where JAX cannot compile for any."""
    cards = targets()
    if name not in cards:
        raise UserError(f"--target must be one of {', '.join(cards)}; got {name!r}")
    if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        raise UserError("metabin plan needs JAX's compiler for CUDA: install metabin_jax[cuda]; no GPU is needed")
    return cards[name]


def variants(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """The config in bfloat16 and float32, with the first-order and the exact meta-gradient where it has one."""
    for dtype in ("bfloat16", "float32"):
        for first_order in (True, False) if config.method == "metabin" else (True,):
            variant = config.copy_and_resolve_references()
            variant.model.dtype, variant.meta.first_order = dtype, first_order
            order = "first order" if first_order else "exact"
            yield f"{dtype}, {order}" if config.method == "metabin" else dtype, variant


def sketch(config: ConfigDict, num_ids: int, num_domains: int = 5) -> Run:
    """The run of a config without its data: as many identities, spread over as many domains, or those it names.

    Raises ValueError for a config that cannot work.
    """
    if min(num_ids, num_domains) < 1:
        raise UserError(f"there must be identities and domains, got {num_ids} and {num_domains}")
    config = config.copy_and_resolve_references()
    config.data.source = "synthetic"  # nothing is read, so that nothing needs to be there
    configuration.check(config)
    if config.data.domain_by == "source" and config.data.train_domains:
        num_domains = len(config.data.train_domains)
    pid = np.repeat(np.arange(num_ids), config.batch.images_per_id)
    names = config.data.train_domains or tuple(f"domain {number}" for number in range(num_domains))
    data = TrainingSet([], names, pid, pid % num_domains, {})
    base, meta = build_samplers(config, data)
    learner = build_learner(config, num_ids, base.steps_per_epoch, with_shuffle=meta is None or meta.num_meta_train > 1)
    return Run(config, data, base, meta, learner, base.steps_per_epoch)


def batch_shapes(run: Run) -> StepBatches:
    """The shapes of one step's batches: X_B and, with meta-learning, X_S and X_T."""
    height, width = run.config.data.height, run.config.data.width

    def shapes(rows: np.ndarray) -> Any:
        label = jax.ShapeDtypeStruct(rows.shape, jnp.int32)
        image = jax.ShapeDtypeStruct((*rows.shape, height, width, 3), jnp.uint8)
        return RawBatch(image, label, label)  # type: ignore[arg-type]  # shapes in the place of arrays

    return StepBatches(shapes(run.base.base(0)), *map(shapes, run.meta.meta(0) if run.meta else ()))


def host_of(target: Target, devices: int = 1) -> Placement:
    """Over the cards of a host, none of which need be there."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=target.text, topology=f"1x1x{devices}"
    )
    return Placement.over(topology.devices)


def compile_step(run: Run, target: Target, devices: int = 1) -> tuple[Any, dict[str, list[int]]]:
    """The real training step of `run`, compiled for cards of one host, which have the whole state and share the rows of
    each batch, as in training; bytes of each norm layer's map on one card, pass by pass."""
    host, step = host_of(target, devices), make_step(run, "gpu")
    state, key = shapes_on(host.whole, (jax.eval_shape(run.init), jax.eval_shape(lambda: run.key)))
    raw = shapes_on(host.by_rows, batch_shapes(run))
    maps: dict[str, list[int]] = {}

    def record(layer, args, kwargs, context):
        module = context.module
        if context.method_name == "coefficients" and not isinstance(module.parent, _Norm):
            maps.setdefault("/".join(module.path), []).append(args[0].size * args[0].dtype.itemsize // devices)
        return layer(*args, **kwargs)

    jitted: Any = step
    with nn.intercept_methods(record):
        lowered = jitted.lower(state, raw, key)
    return lowered.compile(compiler_options=OPTIONS), maps


def measure(run: Run, target: Target, devices: int = 1) -> Needs:
    """Raises ValueError where the step computes in float64 or talks to the host."""
    compiled, maps = compile_step(run, target, devices)
    program = Program.parse(compiled.as_text())
    problems = program.problems()
    if problems:
        raise UserError(f"the training step has {len(problems)} of what must not be there, first: {problems[0]}")
    memory, kernels = compiled.memory_analysis(), program.kernels()
    sizes = [size for passes in maps.values() for size in passes]
    return Needs(
        # A donated argument is an output too, and lies there once.
        arguments=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        work=Work(sum(map(program.moved, kernels)), len(kernels), find_collectives(program, devices)),
        norms=program.norm_traffic(maps),
        floor=3 * sum(sizes),
        convolutions=len(program.library_convolutions()),
        largest=program.live_at_peak()[:4],
    )


def plan(config: ConfigDict, target: Target, num_ids: int, num_domains: int, devices: int = 1) -> Iterator[str]:
    """The report, line by line: a Markdown table with a row for each of the config's `variants`, of one device; for
    more than one, what they send each other, and what that means for their speed.

    Raises ValueError for a config that cannot work, for a number of devices that cannot share its batches, and as
    `measure`.
    """
    if devices < 1:
        raise UserError(f"--devices must be 1 or more, got {devices}")
    runs = [(name, sketch(variant, num_ids, num_domains)) for name, variant in variants(config)]
    check_divisible(runs[0][1], devices)
    data, images = config.data, " + ".join(str(len(batch.pid)) for batch in batch_shapes(runs[0][1]) if batch)
    yield (
        f"{config.method}, {config.model.name}, {data.height} x {data.width}, {images} images a step, {num_ids:,} "
        f"identities, on {f'{devices} x ' if devices > 1 else ''}{target.title} with {_gib(target.memory)} GiB"
        f"{', of which the table shows one' if devices > 1 else ''} (JAX {jax.__version__})"
    )
    yield ""
    yield f"| {' | '.join(HEADER)} |"
    yield f"|{'---|' * len(HEADER)}"
    largest, speeds = [], []
    for name, run in runs:
        needs = measure(run, target, devices)
        cells = (
            name, _gib(needs.peak), _gib(needs.arguments), _gib(needs.temporaries),
            "yes" if needs.peak <= USABLE * target.memory else "no", f"{needs.work.moved / 1e9:.1f}",
            f"{needs.norms / 1e9:.2f}", f"{needs.norms / needs.floor:.2f}x", f"{needs.work.kernels:,}",
            needs.convolutions,
        )  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"
        buffers = "; ".join(f"{b.size / 2**20:.0f} MiB {b.type} {_place(b)}" for b in needs.largest)
        largest.append(f"- {name}: {buffers}")
        if devices > 1:
            alone = measure(run, target).work
            speeds.append(f"- {name}")
            speeds += [f"  - {line}" for line in explain(alone, needs.work, devices, target.bandwidth, target.link)]
    yield ""
    yield "Largest at the peak:"
    yield from largest
    if speeds:
        yield ""
        yield "A step's communication, and what it leaves of the speed:"
        yield from speeds


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _place(buffer: Buffer) -> str:
    """The end of where it comes from."""
    return "/".join(buffer.op_name.split("/")[-3:]) or "of the compiler's"
