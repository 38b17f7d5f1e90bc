"""What one GPU does in a few minutes: correctness, iteration time beside PyTorch's, kernels, dispatch, embedding.

    python -m experiments.benchmarks.gpu --output=DIR          about eight minutes; with PyTorch if it is installed
    python -m experiments.benchmarks.gpu --output=DIR --cpu    the same with a tiny net, to see that everything runs

The paper's net and batches (80 + 48 + 32 images of 256 x 128). Each contestant is a process of its own. Three compile
at a time; those that are ready then take turns at the device, which nothing else uses. DIR gets gpu.json, gpu.md and,
in logs/, what each contestant had to say. The first two are written again after every part, so that what was measured
stays. A contestant that fails or takes too long leaves the others as they are, and its error is in the tables.

`shifts` computes the depthwise convolutions as nine shifted multiply-adds, as on a CPU, and `library stem` the first
convolution by the library. AMP: autocast to bfloat16. float32: products take TF32, the default of JAX and of PyTorch's
convolutions. Memory is the peak that the process's allocator saw, marked <= if it is that of compiling, where
algorithms are tried; "planned" is what the compiler announced, which `metabin plan` prints.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from experiments.tables import markdown
from metabin_jax.runtime.files import write_json, write_text

# Contestant -> what it does, and the settings of `workers.build`.
CONTESTANTS: dict[str, dict[str, Any]] = {
    "checks": {"kind": "checks"},
    "bfloat16, first order": {"kind": "step", "dtype": "bfloat16"},
    "bfloat16, exact": {"kind": "step", "dtype": "bfloat16", "first_order": False},
    "float32, first order": {"kind": "step", "dtype": "float32"},
    "float32, exact": {"kind": "step", "dtype": "float32", "first_order": False},
    "PyTorch, AMP": {"kind": "torch", "amp": True},
    "PyTorch, AMP, channels last": {"kind": "torch", "amp": True, "channels_last": True},
    "PyTorch, AMP, channels last, compiled": {"kind": "torch", "amp": True, "channels_last": True, "compiled": True},
    "PyTorch, float32": {"kind": "torch"},
    "bfloat16, first order, shifts": {"kind": "step", "dtype": "bfloat16", "form": "shifts"},
    "bfloat16, first order, library stem": {"kind": "step", "dtype": "bfloat16", "form": "library stem"},
    "streaming": {"kind": "dispatch", "steps": 1, "resident": False},
    "resident": {"kind": "dispatch", "steps": 1, "resident": True},
    "resident, 8 steps a dispatch": {"kind": "dispatch", "steps": 8, "resident": True},
    "embed, bfloat16": {"kind": "embed", "dtype": "bfloat16"},
    "embed, float32": {"kind": "embed", "dtype": "float32"},
}
AT_ONCE, COMPILING = 3, 0.7
PATIENCE = {"time": 40, "memory": 10, "profile": 60}  # seconds for an answer; a contestant that takes longer is ended
BASE = "bfloat16, first order"  # the ratios are to it


class Worker:
    """A contestant in a process of its own, which answers one line of JSON to each line that it gets."""

    def __init__(self, name: str, settings: dict[str, Any], log: Path):
        command = [sys.executable, "-m", "experiments.benchmarks.gpu_workers", json.dumps(settings)]
        self.name, self.log = name, log
        self.answers: Queue[Any] = Queue()
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith("{"):
                self.answers.put(json.loads(line))
        self.answers.put({"error": self._last_words()})

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b|PyTorch is", line)]
        status = self.process.wait()
        return [f"it stopped with status {status}", *lines[-1:], *errors][-1][:300]

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next answer, {"error": why} of a contestant that failed; None if there is none in so many seconds."""
        try:
            return self.answers.get(timeout=max(0.1, seconds))
        except Empty:
            return None

    def ask(self, word: str, deadline: float) -> dict[str, Any]:
        """The answer to a word of PATIENCE; {"error": why} if there is none."""
        if (seconds := min(PATIENCE[word], deadline - time.monotonic())) <= 0:
            return {"error": f"there was no time for {word}"}
        try:
            assert self.process.stdin
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except OSError:
            return {"error": self._last_words()}
        found = self.answer(seconds)
        return {"error": f"no answer to {word} in {seconds:.0f} s"} if found is None else found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(OSError):
                pipe.close()


def compete(
    contestants: dict[str, dict[str, Any]], turns: int, seconds: float, log: Path, keep: Callable[[dict], None]
) -> dict[str, dict[str, Any]]:
    """Name -> what was found of each contestant. Calls keep(found) whenever something new is known.

    AT_ONCE contestants compile at a time, in their order, for at most COMPILING of the seconds; the others are ended.
    Those that are ready are then timed in turns. BASE is looked at before the second turn, should time run out.
    """
    start = time.monotonic()
    found: dict[str, dict[str, Any]] = {name: {"error": "there was no time to compile it"} for name in contestants}
    waiting, compiling, ready = list(enumerate(contestants)), {}, {}

    def add(name: str, answer: dict[str, Any]) -> None:
        milliseconds = found[name].get("ms", []) + answer.pop("ms", [])
        found[name] |= answer | ({"ms": milliseconds} if milliseconds else {})
        print(f"{name}: {json.dumps(answer or milliseconds[-3:])[:400]}", flush=True)
        keep(found)

    try:
        while (waiting or compiling) and time.monotonic() < start + COMPILING * seconds:
            while waiting and len(compiling) < AT_ONCE:
                number, name = waiting.pop(0)
                compiling[name] = Worker(name, contestants[name], log / f"{number}.txt")
            for name, worker in list(compiling.items()):
                if answer := worker.answer(0.2):
                    del found[name]["error"]
                    ready[name] = compiling.pop(name)
                    add(name, answer)
        for worker in compiling.values():
            worker.end()
        timing = [("time", name) for name in ready]
        first, others = ([name for name in ready if (name == BASE) == is_base] for is_base in (True, False))
        looks = [[(word, name) for word in ("memory", "profile") for name in names] for names in (first, others)]
        for word, name in timing + looks[0] + timing * (turns - 1) + looks[1]:
            if "error" not in found[name]:
                answer = ready[name].ask(word, start + seconds)
                if "error" in answer:  # it must not disturb the others
                    ready[name].end()
                add(name, answer)
    finally:
        for worker in (*ready.values(), *compiling.values()):
            worker.end()
    return found


def report(found: dict[str, dict[str, Any]], card: str) -> str:
    """Tables in Markdown of what `compete` has found so far."""
    base = statistics.median(found.get(BASE, {}).get("ms", [float("nan")]))
    rows = []
    for name, numbers in found.items():
        if "checks" in numbers or not ("ms" in numbers or "error" in numbers):
            continue
        cells = [name]
        if "ms" in numbers:
            if "error" in numbers:
                cells = [f"{name} (later: {numbers['error']})"]
            ms = numbers["ms"]
            median = statistics.median(ms)
            cells += [f"{median:.2f} ({min(ms):.2f} to {max(ms):.2f})", f"{median / base:.2f}"]
            cells += [f"{1000 * numbers['images'] / median:,.0f}"]
        else:
            cells += [numbers["error"], "-", "-"]
        sign = "<= " if numbers.get("of_compiling") else ""
        cells += [f"{sign}{numbers['peak'] / 2**20:,.0f}" if "peak" in numbers else "-"]
        cells += [f"{numbers['planned'] / 2**20:,.0f}" if "planned" in numbers else "-"]
        cells += [f"{100 * numbers['idle']:.0f}" if numbers.get("idle") is not None else "-"]
        rows.append([*cells, f"{numbers['ready']:.0f}" if "ready" in numbers else "-"])
    header = [
        "contestant",
        "ms (min to max)",
        "ratio",
        "images/s",
        "peak, MiB",
        "planned, MiB",
        "idle, %",
        "to compile, s",
    ]
    parts = [f"On {card}.", markdown(header, rows)]
    parts += [
        markdown(["check", "found", "allowed"], found[name]["checks"]) for name in found if "checks" in found[name]
    ]
    for name, numbers in found.items():
        if numbers.get("kernels"):
            parts += [
                f"Kernels of {name}, ms an iteration:",
                markdown(["kernel", "kind", "ms", "share, %"], numbers["kernels"]),
            ]
            parts.append(markdown(["kind", "ms", "share, %"], numbers["kinds"]))
        if numbers.get("bandwidth"):
            parts.append(numbers["bandwidth"])
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder for gpu.json and gpu.md")
    parser.add_argument("--cpu", action="store_true", help="a tiny net on the CPU")
    parser.add_argument("--seconds", type=float, default=480, help="when to stop waiting for contestants")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="CONTESTANT", default=list(CONTESTANTS))
    args = parser.parse_args(arguments)
    (args.output / "logs").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the contestants share the device
    if args.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    card = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.gpu_workers", "{}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()[-1]

    def keep(found: dict[str, dict[str, Any]]) -> None:
        write_json(args.output / "gpu.json", {"card": card, "found": found})
        write_text(args.output / "gpu.md", report(found, card))

    contestants = {name: CONTESTANTS[name] | {"tiny": args.cpu} for name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
        found = compete(contestants, args.turns, args.seconds, args.output / "logs", keep)
    print(report(found, card))


if __name__ == "__main__":
    main()
