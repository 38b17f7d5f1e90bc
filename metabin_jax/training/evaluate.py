"""Evaluation of a run's selected checkpoint on domains that it was not trained on."""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from metabin_jax import models
from metabin_jax.algorithm import TrainState
from metabin_jax.data.records import Record
from metabin_jax.data.sets.splits import split_source
from metabin_jax.evaluation import QueryGallery, embed, protocols, query_gallery, ranking_metrics, tables
from metabin_jax.evaluation.protocol import target_splits
from metabin_jax.evaluation.statistics import Summary, summarise
from metabin_jax.evaluation.targets import TargetResult, evaluate_target
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import write_json, write_text
from metabin_jax.training import trained
from metabin_jax.training.build import Run, build_model, load_images, read
from metabin_jax.training.config import PRESETS, metabin
from metabin_jax.training.trained import Trained
from metabin_jax.training.workdir import read_config, settings

# The fields that can change what an evaluation of a trained run measures.
MEASURED = (
    "data.source", "data.path", "data.protocol", "data.eval_domains", "data.height", "data.width", "selection",
    "eval.metric", "eval.policy", "eval.rerank", "eval.query_expansion", "eval.far",
)  # fmt: skip


class Target(NamedTuple):
    """A domain and what was measured on it. image: row of `records` -> uint8 [H, W, 3]."""

    result: TargetResult
    records: list[Record]
    image: Callable[[int], NDArray[np.uint8]]


def evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Evaluates the selected checkpoint of `workdir` on config.data.eval_domains; needs no source images.

    Writes evaluation.md, a table, and evaluation.json, and returns the latter: {"file", "step", "source_mAP", "policy",
    "metric", "rerank", "query_expansion", "targets", "benchmark"}. "targets" has for each domain "R-1", "R-5", "R-10",
    "mAP", "mINP" (fractions, means over splits), "queries" (number with a valid match), "unmatched" (paths of those
    without) and "verification" (the fields of `evaluation.Verification`). "benchmark" has the same with deviations and
    intervals, and what others reported (`evaluation.tables.as_dict`). None is what could not be measured.

    An evaluation with other settings than the run's own leaves the run's files as they are. Its two files, and "file",
    are named after the settings that differ: evaluation-rerank.json, evaluation-domains=north,west-policy=ignore.json
    (see `file_name`).

    Raises ValueError or FileNotFoundError when there is no checkpoint or no domain to evaluate on.
    """
    if not config.data.eval_domains:
        raise UserError("config.data.eval_domains is empty: name the domains to evaluate on")
    run = trained.load(workdir, config)
    targets = read_targets(run.config)
    return evaluate_trained(run, targets, load_images(run.config, targets))


def read_targets(config: ConfigDict) -> list[Record]:
    """The records of config.data.eval_domains. Raises ValueError for a domain that cannot be evaluated."""
    domains = config.data.eval_domains
    records = read(config, domains) if domains else []
    for domain in domains:
        domain_splits(config, domain, [record for record in records if record.domain == domain])
    return records


def domain_splits(config: ConfigDict, domain: str, records: Sequence[Record]) -> tuple[list[QueryGallery], str]:
    """The splits of a domain with these records, and where they are from, as in `TargetResult`.

    A prepared set has the splits of its benchmark, from the set's own file of splits if `metabin prepare` found one;
    any other domain has one split. Raises ValueError for a domain that cannot be evaluated.
    """
    if config.data.source != "prepared":
        return [query_gallery(records, config.eval.policy)], ""
    files = sorted(Path(config.data.path, "splits").glob(f"{domain}.*"))
    file = files[0] if files else None
    return target_splits(domain, records, file, config.eval.policy), split_source(domain, file)


def evaluate_trained(run: Trained, records: Sequence[Record], images: np.ndarray | None) -> dict:
    """`evaluate` of what is loaded already; images is None without a domain to evaluate on."""
    config = run.config
    name = file_name(read_config(run.workdir), config)
    ranked_by = {field: config.eval[field] for field in ("policy", "metric", "rerank", "query_expansion")}
    score = _none_for_nan({"source_mAP": run.source_mAP})
    results: dict[str, Any] = {"file": f"{name}.json", "step": run.step, **score, **ranked_by, "targets": {}}
    if images is not None:
        measured = [target.result for target in measure(run, records, images)]
        summaries, protocol = summarise(measured), _protocol(config)
        results["targets"] = {
            result.target: _numbers(summary) | _details(result)
            for result, summary in zip(measured, summaries, strict=False)
        }
        results["benchmark"] = tables.as_dict(protocol, summaries, _how(config, run.step))
        write_text(run.workdir / f"{name}.md", tables.markdown(results["benchmark"]))
    write_json(run.workdir / f"{name}.json", results)
    return results


def file_name(own: ConfigDict, config: ConfigDict) -> str:
    """The name, without its suffix, of the files of an evaluation by `config` in a run whose own config is `own`.

    It is "evaluation", then "-FIELD=VALUE" for every field of MEASURED that differs: FIELD without its group and
    "eval_", a tuple's VALUE joined by commas, and "-FIELD" alone for True. A VALUE is cut at 60 characters, and its
    characters other than letters, digits and "._+" become "_"; after such a change eight digits of a SHA-256 follow.
    """
    parts = ["evaluation"]
    for field in MEASURED:
        group, _, name = field.rpartition(".")
        before, value = (of[group][name] if group else of[name] for of in (own, config))
        if value != before:
            words = "" if value is True else f"={_in_file_name(value)}"
            parts.append(name.removeprefix("eval_") + words)
    return "-".join(parts)


def _in_file_name(value: Any) -> str:
    items = [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    text = ",".join(items)
    plain = ",".join(re.sub("[^A-Za-z0-9._+]", "_", item) for item in items)[:60]
    digest = hashlib.sha256(repr(items).encode()).hexdigest()[:8]
    return plain if plain == text else f"{plain}-{digest}"


def measure(
    run: Trained, records: Sequence[Record], images: np.ndarray, listed: int = 0, bins: int = 0
) -> list[Target]:
    """What the run's evaluation measures on each of its domains, which have these records and images.

    listed, bins: as in `evaluation.protocol.ranking` and `evaluation.thresholds.scored_pairs`.
    """
    config = run.config
    domain_of_row = np.array([record.domain for record in records])
    targets = []
    for domain in config.data.eval_domains:
        rows = np.flatnonzero(domain_of_row == domain)
        own = [records[row] for row in rows.tolist()]
        splits, source = domain_splits(config, domain, own)
        embed_rows = functools.partial(_embed_rows, run.model, run.variables, images, config.eval.batch_size, rows)
        result = evaluate_target(
            domain, own, embed_rows, splits, source, policy=config.eval.policy, far=config.eval.far, bins=bins,
            metric=config.eval.metric, rerank=config.eval.rerank, query_expansion=config.eval.query_expansion,
            listed=listed,
        )  # fmt: skip
        targets.append(Target(result, own, functools.partial(_image, images, rows)))
    return targets


def measure_targets(run: Trained, listed: int, bins: int) -> list[Target]:
    """`measure` of the domains that the run's config names; none is fine."""
    records = read_targets(run.config)
    return measure(run, records, load_images(run.config, records), listed, bins) if records else []


def settings_and_preset(run: Trained) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's settings, and its preset's, as JSON knows them."""
    preset = run.config.preset if run.config.preset in PRESETS else PRESETS[0]
    return settings(run.config), settings(metabin(preset))


def source_score(run: Run, images: np.ndarray, state: TrainState) -> float:
    """mAP on held-out source identities, mean over the sources; nan where no query has a match."""
    config, data = run.config, run.data
    variables = {"params": state.params, "rho": state.rho, "batch_stats": state.batch_stats}
    model = build_model(config, data.num_ids)
    scores = []
    for rows in data.held_out.values():
        split = query_gallery([data.records[row] for row in rows.tolist()], config.eval.policy)
        feature_ND = _embed_rows(model, variables, images, config.eval.batch_size, rows, np.arange(len(rows)))
        query_QD, gallery_GD = feature_ND[split.query_row], feature_ND[split.gallery_row]
        scores.append(ranking_metrics(query_QD, gallery_GD, split, config.eval.metric).mAP)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else math.nan


def _image(images: np.ndarray, rows: np.ndarray, row: int) -> NDArray[np.uint8]:
    return images[rows[row]]


def _embed_rows(
    model: models.ReID, variables: dict, images: np.ndarray, batch_size: int, rows: np.ndarray, some: np.ndarray
) -> np.ndarray:
    """The embeddings of images[rows[some]]."""
    return embed(model, variables, images, batch_size, rows=rows[some])


def _protocol(config: ConfigDict) -> protocols.Protocol:
    if config.data.protocol:
        return protocols.load(config.data.protocol)
    data = config.data
    return protocols.Protocol("", data.train_domains, data.train_splits, data.eval_domains, data.domain_by)


def _how(config: ConfigDict, step: int) -> list[str]:
    """What our numbers are of, and what was done beyond the ranking that others report."""
    steps = {
        f"by {config.eval.metric} distance": config.eval.metric != "cosine",
        "images of the query's own camera count": config.eval.policy == "ignore",
        f"after query expansion by {config.eval.query_expansion} images": config.eval.query_expansion,
        "after k-reciprocal re-ranking": config.eval.rerank,
    }
    return [
        f"{config.method}, {config.model.name}, step {step}",
        *(words for words, is_done in steps.items() if is_done),
    ]


def _numbers(summary: Summary) -> dict[str, Any]:
    return _none_for_nan({name: estimate.mean for name, estimate in summary.estimates.items()})


def _details(result: TargetResult) -> dict[str, Any]:
    return {
        "queries": sum(metrics.num_valid for metrics in result.metrics),
        "unmatched": list(result.unmatched),
        "verification": _none_for_nan(dataclasses.asdict(result.verification)),
    }


def _none_for_nan(numbers: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: None if value is None or math.isnan(value) else value for name, value in numbers.items()}
