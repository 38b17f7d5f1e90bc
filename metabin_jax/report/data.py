"""What the page is about: all that a workdir and, where asked for, its evaluation domains hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from metabin_jax.data.dataset import SOURCES
from metabin_jax.data.records import Record
from metabin_jax.evaluation.statistics import Summary, summarise
from metabin_jax.report.domain import LENGTH, SCORE_BINS, Domain, examine
from metabin_jax.report.rho import Layer, rho_layers
from metabin_jax.runtime.files import read_json
from metabin_jax.runtime.runlog import read_rows
from metabin_jax.training import trained
from metabin_jax.training.build import load_images
from metabin_jax.training.config import PRESETS, metabin
from metabin_jax.training.evaluate import measure, read_targets
from metabin_jax.training.workdir import settings


@dataclass(frozen=True)
class RunData:
    """A run.

    config, preset: its settings and those of its preset, nested. starts: as in environment.json, one per start of the
    training. rows: of metrics.jsonl. layers: in the order of the net, none for a model without rho. summaries: of the
    domains and, for several, of their mean. file: of a record, what PIL opens of its image.
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
    file: Callable[[Record], str | IO[bytes]]


def collect(config: Any, workdir: Path) -> RunData:
    """Evaluates the selected checkpoint on the config's domains, if it names any, and reads what else is there.

    Raises ValueError or FileNotFoundError as `training.trained.load` and `training.evaluate.read_targets`.
    """
    run = trained.load(workdir, config)
    try:
        records = read_targets(run.config)
    except FileNotFoundError as error:
        without = "without pictures, --config.data.eval_domains= makes a page about the training alone"
        raise FileNotFoundError(f"{str(error).removesuffix('.')}: {without}") from error
    images = load_images(run.config, records) if records else np.empty(0, np.uint8)
    results = measure(run, records, images, LENGTH, SCORE_BINS)
    own = settings(run.config)
    environment = workdir / "environment.json"
    return RunData(
        name=workdir.absolute().name,
        config=own,
        preset=settings(metabin(own["preset"] if own["preset"] in PRESETS else PRESETS[0])),
        starts=read_json(environment) if environment.is_file() else [],
        rows=read_rows(workdir / "metrics.jsonl"),
        step=run.step,
        source_mAP=run.source_mAP,
        layers=rho_layers(run.model, run.variables, run.size),
        domains=[examine(result) for result in results],
        summaries=summarise(results) if results else [],
        file=SOURCES[run.config.data.source].files(records) if records else str,
    )
