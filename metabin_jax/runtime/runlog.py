"""The log of a run: its metrics, and the versions and devices it ran on. Process 0 alone writes."""

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from metabin_jax.runtime.devices import is_first
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import write_text
from metabin_jax.runtime.progress import Progress


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, or none if there is no such file. A last row cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("}")]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove the line") from error


def environment() -> dict:
    """Versions, devices, command line and git revision ('+changes' marks a tree with uncommitted changes)."""
    packages = ("metabin_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "git": _git_revision(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _git_revision() -> str | None:
    """The revision of the source that this package runs from; None outside a git checkout."""
    here = Path(__file__)

    def git(*command: str) -> str:
        return subprocess.run(("git", *command), cwd=here.parent, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed package may lie inside another repository
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class MetricsWriter(contextlib.AbstractContextManager):
    """metrics.jsonl, TensorBoard events and the progress of a training. Use as a context.

    Metrics are fetched from the device after the next dispatch, so that the device never waits for the log. A training
    that resumes at step `start` writes the rows after it again, so those are dropped first.
    """

    def __init__(self, workdir: Path, start: int, total: int, log_every: int):
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(self._path) if row["step"] <= start]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=is_first())
        self._total, self._every = total, log_every
        self._pending: tuple[range, dict[str, jax.Array]] | None = None
        self._since: float | None = None
        self._images = 0
        # It prints at each update. A delay of 0 would print before the first.
        self._progress = Progress("step", total, unit="steps", initial=start, delay=1e-9, mininterval=0)

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._progress.close()
        self._events.close()

    def step(self, step: int, metrics: dict[str, jax.Array], images: int, num_steps: int = 1) -> None:
        """Counts the steps of one dispatch, up to `step`, which took `images` images together.

        metrics: [num_steps] each, or scalars of one step. Every log_every steps and the last one are kept.
        """
        self.flush()
        if self._since is None:  # the first step is compiled: that time does not count
            self._since = time.monotonic()
            self._progress.start_clock()
        self._images += images
        steps = range(step + 1 - num_steps, step + 1)
        if any(map(self._is_kept, steps)):
            self._pending = (steps, metrics)

    def _is_kept(self, step: int) -> bool:
        return step % self._every == 0 or step == self._total

    def write(self, step: int, row: dict[str, float]) -> None:
        """Adds a row."""
        if not is_first():
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes what is pending. Call it before a checkpoint, which must not be ahead of the log."""
        if self._pending is None or self._since is None:
            return
        steps, metrics = self._pending
        values = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
        rate = self._images / (time.monotonic() - self._since)
        for number, step in enumerate(steps):
            if self._is_kept(step):
                row = {name: float(value[number]) for name, value in values.items()}
                self.write(step, row | {"images_per_second": rate})
        loss = sum(value for name, value in row.items() if name.startswith("base/"))
        self._progress.set_postfix_str(f"base loss {loss:.3f}, {rate:.0f} images/s", refresh=False)
        self._progress.update(steps[-1] - self._progress.n)
        self._pending, self._images, self._since = None, 0, time.monotonic()
