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
import jax.numpy as jnp
import numpy as np

from metabin_jax.runtime.devices import is_first
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import naming, write_text
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


class NotFinite(Exception):
    """Something is not finite. step: the first where it was not. names: of its metrics that are not, if any."""

    def __init__(self, step: int, names: list[str]):
        super().__init__(step, names)
        self.step, self.names = step, names


class MetricsWriter(contextlib.AbstractContextManager):
    """metrics.jsonl, TensorBoard events and the progress of a training. Use as a context.

    Metrics are fetched from the device after the next dispatch, so that the device never waits for the log. A training
    that resumes at step `start` writes the rows after it again, so those are dropped first.

    The metric `finite` says whether all that a step computed is; it is no part of the rows. Raises NotFinite for the
    first step where it is not, before the rows of that step are written.
    """

    def __init__(self, workdir: Path, start: int, total: int, log_every: int):
        from metabin_jax.runtime.events import Events  # TensorBoard's package imports torch, which takes seconds

        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(self._path) if row["step"] <= start]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._events = Events(workdir / "tensorboard", start + 1) if is_first() else None
        self._total, self._every = total, log_every
        self._pending: list[tuple[range, dict[str, jax.Array]]] = []  # of all steps since the last row
        self._since: float | None = None
        self._images = 0
        # It prints at each update. A delay of 0 would print before the first.
        self._progress = Progress("step", total, unit="steps", initial=start, delay=1e-9, mininterval=0)

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        try:
            if kind is not NotFinite:
                self.flush()
        finally:
            self._progress.close()
            if self._events:
                self._events.close()

    def step(self, step: int, metrics: dict[str, jax.Array], images: int, num_steps: int = 1) -> None:
        """Counts the steps of one dispatch, up to `step`, which took `images` images together.

        metrics: [num_steps] each, or scalars of one step. Every log_every steps and the last one are kept.
        """
        if self._pending and any(map(self._is_kept, self._pending[-1][0])):
            self.flush()
        if self._since is None:  # the first step is compiled: that time does not count
            self._since = time.monotonic()
            self._progress.start_clock()
        self._images += images
        steps = range(step + 1 - num_steps, step + 1)
        self._pending.append((steps, metrics))

    def _is_kept(self, step: int) -> bool:
        return step % self._every == 0 or step == self._total

    def write(self, step: int, row: dict[str, float]) -> None:
        """Adds a row."""
        if not is_first():
            return
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        if self._events:
            self._events.add(step, row)

    def flush(self) -> None:
        """Writes what is pending. Call it before a checkpoint, which must not be ahead of the log."""
        if not self._pending or self._since is None:
            return
        self._check_finite()
        steps, metrics = self._pending[-1]
        values = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items() if name != "finite"}
        rate = self._images / (time.monotonic() - self._since)
        kept = [(number, step) for number, step in enumerate(steps) if self._is_kept(step)]
        for number, step in kept:
            row = {name: float(value[number]) for name, value in values.items()}
            self.write(step, row | {"images_per_second": rate})
        self._pending = []
        if kept:
            loss = sum(value for name, value in row.items() if name.startswith("base/"))
            self._progress.set_postfix_str(f"base loss {loss:.3f}, {rate:.0f} images/s", refresh=False)
            self._progress.update(steps[-1] - self._progress.n)
            self._images, self._since = 0, time.monotonic()

    def _check_finite(self) -> None:
        """One transfer for all pending steps."""
        flags = [jnp.atleast_1d(metrics["finite"]) for _, metrics in self._pending if "finite" in metrics]
        if not flags or np.all(finite := np.asarray(jnp.concatenate(flags))):
            return
        index = int(np.argmin(finite))
        for steps, metrics in self._pending:
            if index < len(steps):
                of_step = {name: np.atleast_1d(value)[index] for name, value in jax.device_get(metrics).items()}
                names = [name for name, value in of_step.items() if not np.isfinite(value)]
                raise NotFinite(steps[index], names)
            index -= len(steps)
