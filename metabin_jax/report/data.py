"""What the page is about: all that a workdir and, where asked for, its evaluation domains hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metabin_jax.evaluation.statistics import Summary, summarise
from metabin_jax.report.domain import LENGTH, SCORE_BINS, Domain, examine
from metabin_jax.report.rho import Layer, rho_layers
from metabin_jax.runtime.files import read_json
from metabin_jax.runtime.runlog import read_rows
from metabin_jax.training import trained
from metabin_jax.training.evaluate import measure_targets, settings_and_preset


@dataclass(frozen=True)
class RunData:
    """A run.

    config, preset: its settings and those of its preset, nested. starts: as in environment.json, one per start of the
    training. rows: of metrics.jsonl. layers: in the order of the net, none for a model without rho. summaries: of the
    domains and, for several, of their mean. image: (domain, row among its records) -> uint8 [H, W, 3].
    """

    name: str
    config: dict[str, Any]
    preset: dict[str, Any]
    starts: list[dict[str, Any]]
    rows: list[dict[str, float]]
    step: int
    source_mAP: float | None
    layers: list[Layer]
    domains: list[Domain]
    summaries: list[Summary]
    image: Callable[[str, int], NDArray[np.uint8]]


def collect(config: Any, workdir: Path) -> RunData:
    """Evaluates the selected checkpoint on the config's domains, if it names any, and reads what else is there.

    Raises ValueError or FileNotFoundError as `training.trained.load` and `training.evaluate.measure_targets`.
    """
    run = trained.load(workdir, config)
    targets = measure_targets(run, listed=LENGTH, bins=SCORE_BINS)
    image_of = {target.result.target: target.image for target in targets}
    settings, preset = settings_and_preset(run)
    environment = workdir / "environment.json"
    return RunData(
        name=workdir.absolute().name,
        config=settings,
        preset=preset,
        starts=read_json(environment) if environment.is_file() else [],
        rows=read_rows(workdir / "metrics.jsonl"),
        step=run.step,
        source_mAP=run.source_mAP,
        layers=rho_layers(run.model, run.variables, run.size),
        domains=[examine(target.records, target.result) for target in targets],
        summaries=summarise([target.result for target in targets]) if targets else [],
        image=lambda name, row: image_of[name](row),
    )
