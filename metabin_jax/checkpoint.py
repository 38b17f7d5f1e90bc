"""Checkpoints of the whole TrainState: everything that changes from step to step."""

from pathlib import Path

import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_managers as policies

from metabin_jax.algorithm import TrainState

SCORE = "score"


class Checkpoints:
    """The latest checkpoint of a run and, where scores are given, the best one; a step is the number of steps done.

    A checkpoint takes its name only when it is complete, so a killed run leaves the one before. Use as a context.
    """

    def __init__(self, workdir: str | Path):
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(get_metric_fn=lambda metrics: metrics[SCORE], n=1),
            ]
        )
        # Writing in the background would read buffers that the next step, donated the state, overwrites.
        options = ocp.CheckpointManagerOptions(preservation_policy=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(Path(workdir).absolute() / "checkpoints", options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, state: TrainState, score: float | None = None) -> None:
        """Writes `state` under its step; a higher score is better."""
        self._manager.save(
            int(state.step),
            args=ocp_args.Composite(state=ocp_args.StandardSave(state)),
            metrics=None if score is None else {SCORE: score},
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def score(self, step: int) -> float | None:
        metrics = self._manager.metrics(step)
        return metrics[SCORE] if metrics else None

    def selected_step(self, best: bool) -> int:
        """The latest step, or that of the best score (the later one of equals). Raises ValueError if there is none."""
        steps = self._manager.all_steps()
        if not steps:
            raise ValueError(f"{self._manager.directory.parent} holds no checkpoint: train there first")
        if not best:
            return max(steps)
        scores = {step: self.score(step) for step in steps}
        return max((score, step) for step, score in scores.items() if score is not None)[1]

    def restore(self, like: TrainState, step: int) -> TrainState:
        """The state at `step`, with the shapes, dtypes and shardings of `like`."""
        restore = ocp_args.StandardRestore(like)
        return self._manager.restore(step, args=ocp_args.Composite(state=restore))["state"]

    def restore_variables(self, step: int) -> dict:
        """What the model needs of the state at `step`: params, rho and batch_stats, as nested dicts of arrays."""
        restore = ocp_args.StandardRestore()
        state = self._manager.restore(step, args=ocp_args.Composite(state=restore))["state"]
        return {name: state.get(name) or {} for name in ("params", "rho", "batch_stats")}
