"""What the page is about: all that a workdir and, where asked for, its evaluation domains hold."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from numpy.typing import NDArray

from metabin_jax import build
from metabin_jax.benchmark.statistics import Summary, summarise
from metabin_jax.checkpoint import Checkpoints
from metabin_jax.compilation import use_compilation_cache
from metabin_jax.evaluate import domain_splits, read_targets
from metabin_jax.evaluation import embed
from metabin_jax.report.domain import Domain, examine
from metabin_jax.runlog import read_json, settings

RHO_BINS = 10  # strictly between 0 and 1


class Layer(NamedTuple):
    """rho of one layer. name: as `stage2.0 expand`; counts: channels at 0, in RHO_BINS equal parts between, at 1."""

    name: str
    counts: NDArray[np.int64]
    mean: float


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
    use_compilation_cache()
    config = build.checked(config)
    with Checkpoints(workdir, scored=config.selection == "source_val", create=False) as checkpoints:
        step = checkpoints.selected_step()
        records = read_targets(config)
        images = build.load_images(config, records) if records else np.empty(0, np.uint8)
        variables, source_mAP = checkpoints.restore_variables(step), checkpoints.score(step)
    model = build.build_model(config, num_ids=variables["params"]["classifier"]["kernel"].shape[1])

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
        step=step,
        source_mAP=source_mAP,
        layers=rho_layers(model, variables, (config.data.height, config.data.width)),
        domains=domains,
        summaries=summarise([domain.result for domain in domains]) if domains else [],
        image=lambda name, row: images[rows_of[name][row]],
    )


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, none if it is not there; a killed run may have left half of its last."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("}")]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove the line") from error


def rho_layers(model: nn.Module, variables: dict, size: tuple[int, int]) -> list[Layer]:
    """How the rho of each layer are distributed; the layers in the order in which the net calls them."""
    return [layer_of(path, rho_C) for path, rho_C in in_order(model, variables, size, variables["rho"]).items()]


def in_order(
    model: nn.Module, variables: dict, size: tuple[int, int], like_rho: dict
) -> dict[tuple[str, ...], NDArray]:
    """Path of a layer -> its values [C] in a tree like that of rho, in the order in which the net calls the layers."""
    called: dict[tuple[str, ...], None] = {}

    def note(method: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        called[context.module.path] = None
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda image: model.apply(variables, image, train=False), np.zeros((1, *size, 3), np.float32))
    values_of = {path[:-1]: np.asarray(value_C) for path, value_C in flatten_dict(like_rho).items()}
    return {path: values_of[path] for path in called if path in values_of}


def layer_of(path: tuple[str, ...], rho_C: NDArray) -> Layer:
    """Clipping leaves the ends exactly 0 and 1, so they are counted apart."""
    inside = rho_C[(rho_C > 0) & (rho_C < 1)]
    bins = np.bincount(np.minimum((inside * RHO_BINS).astype(int), RHO_BINS - 1), minlength=RHO_BINS)
    counts = np.array([(rho_C <= 0).sum(), *bins, (rho_C >= 1).sum()])
    return Layer(layer_name(path), counts, float(rho_C.mean()))


def layer_name(path: tuple[str, ...]) -> str:
    """As `stage2.0 expand`."""
    return " ".join(part.removesuffix("_norm").replace("_block", ".") for part in path if part != "backbone")
