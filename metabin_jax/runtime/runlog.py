"""The log of a run: its metrics, and the versions and devices it ran on. Process 0 alone writes."""

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


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, none if it is not there; a killed run may have left half of its last."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("}")]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove the line") from error


def environment() -> dict:
    """Versions, devices, command line and git revision (with '+changes' where the tree is not clean)."""
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
    """Of the source this package runs from; None outside a git checkout."""
    here = Path(__file__)

    def git(*command: str) -> str:
        return subprocess.run(("git", *command), cwd=here.parent, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed inside somebody's repository, it is not of theirs
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class MetricsWriter:
    """metrics.jsonl, TensorBoard events and a progress line. Use as a context.

    What is to be kept is fetched when the next dispatch is on its way, so that the device never waits for the log. On
    resuming at `start`, rows beyond it are dropped: they will be written again.
    """

    def __init__(self, workdir: Path, start: int, total: int, log_every: int):
        self._path = workdir / "metrics.jsonl"
        rows = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= start]
        write_text(self._path, "".join(row + "\n" for row in kept))
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=is_first())
        self._total, self._every = total, log_every
        self._pending: tuple[range, dict[str, jax.Array]] | None = None
        self._since: float | None = None
        self._images, self._last = 0, start

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._events.close()

    def step(self, step: int, metrics: dict[str, jax.Array], images: int, num_steps: int = 1) -> None:
        """Counts the steps of one dispatch, up to `step`, of `images` images together.

        metrics: [num_steps] each, or scalars of one step; kept are those of every log_every steps, and of the last.
        """
        self.flush()
        if self._since is None:
            self._since = time.monotonic()  # and not before, when the first step was compiled
        self._images += images
        steps = range(step + 1 - num_steps, step + 1)
        if any(map(self._is_kept, steps)):
            self._pending = (steps, metrics)

    def _is_kept(self, step: int) -> bool:
        return step % self._every == 0 or step == self._total

    def write(self, step: int, row: dict[str, float]) -> None:
        """Adds a row of its own."""
        if not is_first():
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes what is pending; call it before a checkpoint, which is never to be ahead of the log."""
        if self._pending is None or self._since is None:
            return
        steps, metrics = self._pending
        values = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
        elapsed = time.monotonic() - self._since
        for number, step in enumerate(steps):
            if self._is_kept(step):
                row = {name: float(value[number]) for name, value in values.items()}
                row["images_per_second"] = self._images / elapsed
                self.write(step, row)
        self._progress(steps[-1], row, elapsed / (steps[-1] - self._last))
        self._pending, self._images, self._since, self._last = None, 0, time.monotonic(), steps[-1]

    def _progress(self, step: int, row: dict[str, float], seconds_per_step: float) -> None:
        if not is_first():
            return
        left = round((self._total - step) * seconds_per_step)
        loss = sum(value for name, value in row.items() if name.startswith("base/"))
        eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        line = f"step {step}/{self._total}  base loss {loss:.3f}  {row['images_per_second']:.0f} images/s  ETA {eta}"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if step == self._total else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
