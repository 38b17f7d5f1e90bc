"""The contestants of `experiments.benchmarks.gpu`: `build` makes one, `main` lets it answer on standard input."""

import functools
import importlib.util
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metabin_jax.data import resident
from metabin_jax.evaluation.embedding import embed_batches
from metabin_jax.models import convolution
from metabin_jax.runtime.compilation import compile_ahead
from metabin_jax.training.build import Run
from metabin_jax.training.config import metabin
from metabin_jax.training.sketch import sketch
from metabin_jax.training.train import make_step, read_batches

NUM_IDS = 1000
ITERATIONS = 10  # timed in a turn
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12}  # bytes a second, by the vendor
KINDS = {  # kind -> what a kernel's name has; the first that fits. XLA calls casts `convert`
    "copies": r"memcpy|memset|copy|transpose",
    "convolution": r"conv(?!ert)|cudnn|implicit|wgrad|dgrad|fprop|depthwise",
    "matrix products": r"gemm|xmma|cutlass|cublas|nvjet|dot",
    "reductions (norm moments, losses)": r"reduce",
}
LIBRARIES = ("convolution", "matrix products")  # whose bytes the compiler does not know


def build_run(settings: dict[str, Any], height: int = 256, width: int = 128) -> Run:
    """The paper's training without its data, or a tiny one."""
    config = metabin()
    config.data.height, config.data.width = height, width
    config.model.dtype = settings.get("dtype", "bfloat16")
    config.meta.first_order = settings.get("first_order", True)
    config.data.resident = settings.get("resident", False)
    config.steps_per_dispatch = settings.get("steps", 1)
    config.steps_per_epoch = 100 * config.steps_per_dispatch  # no dispatch is shorter
    if settings["tiny"]:
        config.model.name, config.data.height, config.data.width = "stem", 32, 32
        config.batch.ids_per_domain, config.batch.images_per_id = 2, 2
    return sketch(config, 40 if settings["tiny"] else NUM_IDS)


def random_images(run: Run) -> np.ndarray:
    shape = len(run.data.pid), run.config.data.height, run.config.data.width, 3
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def use_form(form: str) -> None:
    """Replaces a form of the convolutions, of the modules that are traced from now on."""
    if form == "shifts":
        library = convolution.by_library

        def by_shifts(x_NHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
            is_depthwise = kernel.shape[2] == 1
            return (convolution.depthwise_by_shifts if is_depthwise else library)(x_NHWC, kernel, stride)

        convolution.by_library = by_shifts
    elif form == "library stem":
        convolution.by_patches = convolution.by_library


def step(settings: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    """One iteration on a batch that is on the device."""
    use_form(settings.get("form", ""))
    run = build_run(settings)
    raw = jax.device_put(next(iter(read_batches(run, random_images(run), 0, 1))))
    state, key = run.init(), run.key
    program = compile_ahead(make_step(run), state, raw, key)
    costs, memory = program.cost_analysis() or {}, program.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    facts = {"images": sum(map(len, run.rows(0))), "planned": planned + memory.temp_size_in_bytes}

    def iterate() -> Any:
        nonlocal state
        state, metrics = program(state, raw, key)
        return metrics

    return iterate, facts | {"bytes": costs.get("bytes accessed", 0.0)}


def dispatch(settings: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    """One dispatch of a training that reads its batches."""
    run, images = build_run(settings), None
    images = random_images(run)
    steps = settings["steps"]
    state, step_fn, more = run.init(), make_step(run), (run.key,)
    if settings["resident"]:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        more += (resident.put(images, run.data.pid, run.data.domain, sharding),)
        step_fn = resident.several_steps(step_fn)
    stream = iter(read_batches(run, images, 0, 100_000 * steps))
    program = compile_ahead(step_fn, state, jax.device_put(next(stream)), *more)

    def iterate() -> Any:
        nonlocal state
        state, metrics = program(state, jax.device_put(next(stream)), *more)
        return metrics

    return iterate, {"images": sum(map(len, run.rows(0))), "steps": steps}


def embed(settings: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A batch of uint8 images from the host to features on the host."""
    run = build_run(settings)
    size = 8 if settings["tiny"] else 256
    state, images = run.init(), random_images(run)[:size]
    variables = {"params": state.params, "rho": state.rho, "batch_stats": state.batch_stats}

    def iterate() -> Any:
        return list(embed_batches(run.learner.model, variables, [images] * 4, size))

    iterate()
    return iterate, {"images": 4 * size}


def torch_iteration(settings: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The PyTorch twin of the tests, first order, on the same batch sizes."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit("PyTorch is not installed")
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import torch
    import torch_twin as twin

    from metabin_jax.models.reid import BACKBONES

    run = build_run(settings)
    device = "cuda" if torch.cuda.is_available() and not settings["tiny"] else "cpu"
    tiny = BACKBONES["stem"].keywords if settings["tiny"] else {}
    model = twin.build("mobilenetv2_1.0" if tiny else "mobilenetv2_1.4", NUM_IDS, "metabin", **tiny)
    torch.backends.cudnn.benchmark = True  # as XLA, which times the library's algorithms
    form = {"memory_format": torch.channels_last} if settings.get("channels_last") else {}
    model = model.to(device, **form)
    if settings.get("compiled"):
        model.forward = torch.compile(model.forward)
    trainer = twin.Trainer(model, lambda step: 0.01, lambda step: 0.1)
    images, parts = random_images(run), []
    for row_N in run.rows(0):
        image = torch.from_numpy(images[row_N]).permute(0, 3, 1, 2).float().div(255).to(device, **form)
        labels = (torch.from_numpy(values[row_N]).long().to(device) for values in (run.data.pid, run.data.domain))
        parts.append(twin.Batch(image, *labels))
    cast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=settings.get("amp", False))

    def iterate() -> Any:
        with cast():
            loss = trainer.iteration(*parts)
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss)

    for _ in range(3):  # the first ones choose algorithms, or compile
        iterate()
    return iterate, {"images": sum(map(len, run.rows(0)))}


def peak(kind: str) -> dict[str, Any]:
    if kind == "torch":
        import torch

        return {"peak": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}


def traced(iterate: Callable[[], Any], iterations: int) -> Any:
    """The profiler's data of so many iterations."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(iterations):
                result = iterate()
            jax.block_until_ready(result)
        (file,) = Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(file))


def profile(iterate: Callable[[], Any], iterations: int, facts: dict[str, Any]) -> dict[str, Any]:
    """The heaviest kernels and the device's idle share, from a trace; nothing on a CPU, which has no such events."""
    spans = [
        (event.start_ns, event.duration_ns, event.name)
        for plane in traced(iterate, iterations).planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    if not spans:
        return {}
    total = max(start + length for start, length, _ in spans) - min(start for start, _, _ in spans)
    busy, end = 0.0, 0.0
    by_name: dict[str, float] = {}
    by_kind: dict[str, float] = {}
    for start, length, name in sorted(spans):
        if "memcpy" not in name.lower():  # the device waits for a copy
            busy += max(0.0, start + length - max(start, end))
            end = max(end, start + length)
        kind = kind_of(name)
        by_name[name] = by_name.get(name, 0.0) + length
        by_kind[kind] = by_kind.get(kind, 0.0) + length
    steps = iterations * facts.get("steps", 1)

    def cells(length: float) -> list[str]:
        return [f"{length / steps / 1e6:.3f}", f"{100 * length / busy:.1f}"]

    heaviest = sorted(by_name.items(), key=lambda item: -item[1])[:10]
    found = {
        "idle": 1 - busy / total,
        "kernels": [[f"`{name[:80]}`", kind_of(name), *cells(length)] for name, length in heaviest],
        "kinds": [[kind, *cells(length)] for kind, length in sorted(by_kind.items(), key=lambda item: -item[1])],
    }
    limit = next((value for card, value in BANDWIDTH.items() if card in jax.devices()[0].device_kind), None)
    own = sum(length for kind, length in by_kind.items() if kind not in LIBRARIES)
    if facts.get("bytes") and limit and own:
        rate = facts["bytes"] * steps / (own / 1e9)
        found["bandwidth"] = (
            f"By the compiler's count, its own kernels access {facts['bytes'] / 2**30:.1f} GiB an iteration. In the "
            f"time of all kernels but {' and '.join(LIBRARIES)} this is {rate / 1e12:.2f} TB/s; the card has "
            f"{limit / 1e12:.2f}."
        )
    return found


def kind_of(kernel: str) -> str:
    """One of KINDS by the kernel's name, or elementwise."""
    return next((kind for kind, words in KINDS.items() if re.search(words, kernel.lower())), "elementwise")


def timed(iterate: Callable[[], Any], kind: str, iterations: int) -> list[float]:
    """Milliseconds of each iteration; of a training that reads its batches their mean, as it waits for none of them."""
    jax.block_until_ready(iterate())
    blocks, of_block = (1, iterations) if kind == "dispatch" else (iterations, 1)
    found = []
    for _ in range(blocks):
        start = time.perf_counter()
        for _ in range(of_block):
            result = iterate()
        jax.block_until_ready(result)
        found.append(1000 * (time.perf_counter() - start) / of_block)
    return found


def card() -> str:
    """The device, and the versions of what computes."""
    import jaxlib

    versions = f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, Python {sys.version.split()[0]}"
    return f"{jax.devices()[0].device_kind}, {versions}"


def main() -> None:
    settings = json.loads(sys.argv[1])
    if not settings:
        print(card())
        return
    kind = settings["kind"]
    start = time.perf_counter()
    if kind == "checks":
        from experiments.benchmarks.gpu_checks import checks

        print(json.dumps({"checks": checks()}), flush=True)
        for _ in sys.stdin:
            print("{}", flush=True)
        return
    makers = {"step": step, "dispatch": dispatch, "embed": embed, "torch": torch_iteration}
    iterate, facts = makers[kind](settings)
    iterations = 2 if settings["tiny"] else ITERATIONS
    compiled = peak(kind)
    jax.block_until_ready(iterate())
    print(json.dumps({"ready": time.perf_counter() - start, **facts}), flush=True)
    for word in map(str.strip, sys.stdin):
        answer: dict[str, Any] = {}
        if word == "time":
            answer["ms"] = [ms / facts.get("steps", 1) for ms in timed(iterate, kind, iterations)]
        elif word == "memory":
            answer = peak(kind)
            answer |= {"of_compiling": answer == compiled} if answer else {}
        elif word == "profile" and kind in ("step", "dispatch"):
            answer = profile(iterate, iterations, facts)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
