"""What the page is about: all that a workdir and, where asked for, its evaluation domains hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from metabin_jax.evaluation import embed
from metabin_jax.evaluation.statistics import Summary, summarise
from metabin_jax.models.rho import Layer, rho_layers
from metabin_jax.report.domain import Domain, examine
from metabin_jax.runtime.files import read_json
from metabin_jax.runtime.runlog import read_rows
from metabin_jax.training import build, trained
from metabin_jax.training.evaluate import domain_splits, read_targets
from metabin_jax.training.workdir import settings


@dataclass(frozen=True)
class RunData:
    """A run.

    config: its settings, nested. starts: as in environment.json, one per start of the training. rows: of
    metrics.jsonl. layers: in the order of the net, none for a model without rho. summaries:
    of the domains and, for several, of their mean. image: (domain, row among its
    records) -> uint8 [H, W, 3].
    """

    name: str
    config: dict[str, Any]
    starts: list[dict[str, Any]]
    rows: list[dict[str, float]]
    step: int
    source_mAP: float | None
    layers: list[Layer]
    domains: list[Domain]
    summaries: list[Summary]
    image: Callable[[str, int], NDArray[np.uint8]]


def collect(config: ConfigDict, workdir: Path) -> RunData:
    """Evaluates the selected checkpoint on config.data.eval_domains, if there are any, and reads what else is there.

    Raises ValueError or FileNotFoundError as `metabin_jax.evaluate.evaluate`, but for the lack of domains.
    """
    run = trained.load(workdir, config)
    config, model, variables = run.config, run.model, run.variables
    records = read_targets(config)
    images = build.load_images(config, records) if records else np.empty(0, np.uint8)

    domain = np.array([record.domain for record in records])
    rows_of = {name: np.flatnonzero(domain == name) for name in config.data.eval_domains}
    domains = []
    for name, own_rows in rows_of.items():

        def features(rows: NDArray[np.int64], own_rows: NDArray[np.int64] = own_rows) -> NDArray[np.float32]:
            return embed(model, variables, images, config.eval.batch_size, rows=own_rows[rows])

        own = [records[row] for row in own_rows.tolist()]
        domains.append(examine(own, features, *domain_splits(config, name, own), config.eval))
    environment = workdir / "environment.json"
    return RunData(
        name=workdir.absolute().name,
        config=settings(config),
        starts=read_json(environment) if environment.is_file() else [],
        rows=read_rows(workdir / "metrics.jsonl"),
        step=run.step,
        source_mAP=run.source_mAP,
        layers=rho_layers(model, variables, (config.data.height, config.data.width)),
        domains=domains,
        summaries=summarise([domain.result for domain in domains]) if domains else [],
        image=lambda name, row: images[rows_of[name][row]],
    )
