"""Checkpoints of the whole TrainState: everything that changes from step to step, with a digest of every array."""

import contextlib
import functools
import hashlib
import logging
import operator
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from metabin_jax.algorithm import TrainState
from metabin_jax.runtime.devices import first_before_others, say
from metabin_jax.runtime.errors import UserError

_score = operator.itemgetter("score")
MEND = "resume the training, which takes the one before, or put it back from a copy"


def _arrays(state: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Path and value of each array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield "/".join(str(getattr(key, "name", getattr(key, "key", key))) for key in path), np.asarray(leaf)


def _check_finite(state: TrainState, step: int) -> None:
    for name, array in _arrays(state):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(
                f"step {step} cannot be a checkpoint: {name} is not finite; try a smaller --config.optimizer.alpha"
            )


def _digests(state: Any) -> dict[str, str]:
    """Path -> SHA-256 of each array."""
    digests = {}
    for name, array in _arrays(state):
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        digests[name] = digest.hexdigest()
    return digests


def _set_aside(path: Path) -> None:
    """A damaged checkpoint must not stand in the way of the steps that come again."""
    if path.exists():
        path.rename(path.with_name(f"damaged-{path.name}-{uuid.uuid4().hex[:8]}"))


@contextlib.contextmanager
def _without_words() -> Iterator[None]:
    """Orbax raises an error of its threads in ours too, where it becomes a sentence, and logs them with tracebacks."""
    hook, logger = threading.excepthook, logging.getLogger("absl")
    level = logger.level
    threading.excepthook = lambda _: None
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        threading.excepthook = hook
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is a complete checkpoint to go on from; creates nothing."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The `keep` latest checkpoints of a run and, where they are scored, the best one; a step counts the steps done.

    A checkpoint takes its name only when it is complete, so a killed run leaves the one before. Use as a context.

    scored: whether checkpoints come with a score, higher being better; the best is among those that have one. Raises
    FileNotFoundError when `workdir` has no checkpoints and `create` is False.
    """

    def __init__(self, workdir: str | Path, scored: bool, create: bool = True, keep: int = 3):
        directory = Path(workdir).absolute() / "checkpoints"
        if not create and not directory.is_dir():
            raise FileNotFoundError(f"{workdir} holds no checkpoint: train there first")
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=_score if scored else None,
            enable_async_checkpointing=False,  # `save` itself writes in the background, from a copy
            create=create,
            cleanup_tmp_directories=create,  # what a killed run left half-written
        )
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add("state", args, ocp.handlers.StandardCheckpointHandler())
        for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add("digests", args, ocp.handlers.JsonCheckpointHandler())
        self._workdir, self._scored = workdir, scored
        self._manager = ocp.CheckpointManager(directory, options=options, handler_registry=registry)
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()

    def wait(self) -> None:
        """Returns when what was saved is written. Raises what `save` says of writing."""
        written, self._written = self._written, None
        if written:
            written.result()

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Writes `state` under its step, with its score if it has one; a single process writes in the background.

        Raises UserError if a value is not finite or, in the next call, if it could not be written; the checkpoints
        before stay.
        """
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():  # a run that stopped right after it was saved
            return
        _check_finite(state, step)
        if jax.process_count() > 1:
            self._write(state, step, score)
            return
        copy = jax.tree.map(np.array, state)  # the next step, donated the state, overwrites its buffers
        self._written = self._writer.submit(self._write, copy, step, score)

    def _write(self, state: TrainState, step: int, score: float | None) -> None:
        digests = _digests(state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), digests=ocp.args.JsonSave(digests))
        metrics = {"score": score} if self._scored and score is not None else None
        try:
            with _without_words():
                self._manager.save(step, args=args, metrics=metrics)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the checkpoint of step {step} could not be written to {self._workdir} ({_first_line(error)}): make "
                "room there, and the same command resumes from the one before"
            ) from error

    def latest_step(self) -> int | None:
        self.wait()
        return self._manager.latest_step()

    def score(self, step: int) -> float | None:
        metrics = self._manager.metrics(step)
        return _score(metrics) if metrics else None

    def selected_step(self) -> int:
        """The step of the best score or, unscored, the latest. Raises ValueError if there is none."""
        step = self._manager.best_step()  # of unscored ones the latest
        if step is None:
            kind = "checkpoint with a score: it was not trained with selection=source_val"
            raise UserError(
                f"{self._workdir} holds no {kind if self.latest_step() else 'checkpoint: train there first'}"
            )
        return step

    def restore(self, like: Any, step: int) -> Any:
        """The state at `step`, with the shapes, dtypes and shardings of `like`. Raises UserError if it is damaged."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), digests=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=args)
            different = _digests(found["state"]).items() ^ found["digests"].items()
        except Exception as error:  # orbax and tensorstore raise many kinds for what is missing or cut off
            raise UserError(f"{self._path(step)} is damaged ({_first_line(error)}): {MEND}") from error
        if different:
            raise UserError(f"{self._path(step)} is damaged ({min(different)[0]} has changed): {MEND}")
        return found["state"]

    def restore_latest(self, like: Any) -> Any:
        """The latest state that is not damaged; says which ones are. Raises UserError if all are."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(like, step)
            except UserError as error:
                say(f"{error}")
                first_before_others(functools.partial(_set_aside, self._path(step)))
                self._manager.reload()
            else:
                return state
        raise UserError(f"no checkpoint of {self._workdir} can be read: remove its folder checkpoints to start again")

    def _path(self, step: int) -> Path:
        return Path(self._workdir) / "checkpoints" / str(step)

    def restore_variables(self, step: int) -> dict:
        """What the model needs of the state at `step`: params, rho and batch_stats, as nested dicts of host arrays."""
        try:
            saved = self._manager.item_metadata(step)["state"].tree
        except (KeyError, AttributeError, ValueError, OSError):
            raise UserError(f"{self._path(step)} is damaged (its description is missing): {MEND}") from None
        # Host arrays, as the devices of the training may not be here.
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
        state: dict = self.restore(like, step)
        return {name: state[name] for name in ("params", "rho", "batch_stats")}
