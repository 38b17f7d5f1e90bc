"""Checkpoints of the whole TrainState: everything that changes from step to step."""

import contextlib
import operator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from metabin_jax.algorithm import TrainState
from metabin_jax.runtime.errors import UserError

_score = operator.itemgetter("score")


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is a complete checkpoint to go on from; creates nothing."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The latest checkpoint of a run and, where they are scored, the best one; a step is the number of steps done.

    A checkpoint takes its name only when it is complete, so a killed run leaves the one before. Use as a context.

    scored: whether every checkpoint comes with a score, higher being better. Raises FileNotFoundError when `workdir`
    has no checkpoints and `create` is False.
    """

    def __init__(self, workdir: str | Path, scored: bool, create: bool = True):
        directory = Path(workdir).absolute() / "checkpoints"
        if not create and not directory.is_dir():
            raise FileNotFoundError(f"{workdir} holds no checkpoint: train there first")
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            best_fn=_score if scored else None,
            # Writing in the background would read buffers that the next step, donated the state, overwrites.
            enable_async_checkpointing=False,
            create=create,
            cleanup_tmp_directories=create,  # what a killed run left half-written
        )
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add("state", args, ocp.handlers.StandardCheckpointHandler())
        self._workdir, self._scored = workdir, scored
        self._manager = ocp.CheckpointManager(directory, options=options, handler_registry=registry)

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Writes `state` under its step; with its score, where they are scored."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
            metrics={"score": score} if self._scored else None,
        )

    def latest_step(self) -> int | None:
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
        """The state at `step`, with the shapes, dtypes and shardings of `like`."""
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]

    def restore_variables(self, step: int) -> dict:
        """What the model needs of the state at `step`: params, rho and batch_stats, as nested dicts of host arrays."""
        saved = self._manager.item_metadata(step)["state"].tree
        # Host arrays, as the devices of the training may not be here.
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
        state: dict = self.restore(like, step)
        return {name: state[name] for name in ("params", "rho", "batch_stats")}
