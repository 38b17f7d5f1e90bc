"""Evaluation of a config's checkpoints on domains they never saw."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from metabin_jax import models
from metabin_jax.algorithm import TrainState
from metabin_jax.data.records import Record
from metabin_jax.evaluation import QueryGallery, embed, protocols, query_gallery, ranking_metrics, tables
from metabin_jax.evaluation.splits import split_source, target_splits
from metabin_jax.evaluation.statistics import Summary, summarise
from metabin_jax.evaluation.targets import TargetResult, evaluate_target
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import write_json, write_text
from metabin_jax.training import trained
from metabin_jax.training.build import Run, build_model, load_images, model_of, read
from metabin_jax.training.trained import Trained


def evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Evaluates the selected checkpoint of `workdir` on config.data.eval_domains; needs no source images.

    Writes evaluation.md, a table, and evaluation.json, and returns the latter: {"step", "source_mAP", "policy",
    "metric", "rerank", "query_expansion", "targets", "benchmark"}. "targets" has for each domain "R-1", "R-5", "R-10",
    "mAP", "mINP" (fractions, means over splits), "queries" (number with a valid match), "unmatched" (paths of those
    without) and "verification" (the fields of `evaluation.Verification`). "benchmark" has the same with deviations and
    intervals, and what others reported (`benchmark.tables.as_dict`). None is what could not be measured.

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

    A prepared set has those of the benchmark, from the set's own file of splits where `metabin prepare` found one; any
    other domain has one. Raises ValueError for a domain that cannot be evaluated.
    """
    if config.data.source != "prepared":
        return [query_gallery(records, config.eval.policy)], ""
    files = sorted(Path(config.data.path, "splits").glob(f"{domain}.*"))
    file = files[0] if files else None
    return target_splits(domain, records, file, config.eval.policy), split_source(domain, file)


def evaluate_trained(run: Trained, records: Sequence[Record], images: np.ndarray | None) -> dict:
    """`evaluate` of what is loaded already; images None: no domain to evaluate on."""
    config = run.config
    settings = {name: config.eval[name] for name in ("policy", "metric", "rerank", "query_expansion")}
    score = _none_for_nan({"source_mAP": run.source_mAP})
    results: dict[str, Any] = {"step": run.step, **score, **settings, "targets": {}}
    if images is not None:
        measured = measure(config, run.variables, records, images)
        summaries, protocol = summarise(measured), _protocol(config)
        results["targets"] = {
            result.target: _numbers(summary) | _details(result)
            for result, summary in zip(measured, summaries, strict=False)
        }
        results["benchmark"] = tables.as_dict(protocol, summaries, _how(config, run.step))
        write_text(run.workdir / "evaluation.md", tables.markdown(results["benchmark"]))
    write_json(run.workdir / "evaluation.json", results)
    return results


def measure(config: ConfigDict, variables: dict, records: Sequence[Record], images: np.ndarray) -> list[TargetResult]:
    """What the config's evaluation measures on each of its domains, whose records and images these are."""
    model = model_of(config, variables)
    settings = config.eval
    domain_of_row = np.array([record.domain for record in records])
    results = []
    for domain in config.data.eval_domains:
        rows = np.flatnonzero(domain_of_row == domain)
        own = [records[row] for row in rows.tolist()]
        splits, source = domain_splits(config, domain, own)
        embed_rows = functools.partial(_embed_rows, model, variables, images, settings.batch_size, rows)
        results.append(
            evaluate_target(
                domain, own, embed_rows, splits, source, policy=settings.policy, far=settings.far,
                metric=settings.metric, rerank=settings.rerank, query_expansion=settings.query_expansion,
            )
        )  # fmt: skip
    return results


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


def _embed_rows(
    model: models.ReID, variables: dict, images: np.ndarray, batch_size: int, rows: np.ndarray, some: np.ndarray
) -> np.ndarray:
    """Of images[rows], those that `some` index."""
    return embed(model, variables, images, batch_size, rows=rows[some])


def _protocol(config: ConfigDict) -> protocols.Protocol:
    if config.data.protocol:
        return protocols.load(config.data.protocol)
    data = config.data
    return protocols.Protocol(
        name="", description="", sources=data.train_domains, source_splits=data.train_splits,
        targets=data.eval_domains, domain_by=data.domain_by, overrides={}, withdrawn=(), published=(),
    )  # fmt: skip


def _how(config: ConfigDict, step: int) -> list[str]:
    """What our numbers are of, and what was done beyond the ranking that others report."""
    settings = config.eval
    steps = {
        f"by {settings.metric} distance": settings.metric != "cosine",
        "images of the query's own camera count": settings.policy == "ignore",
        f"after query expansion by {settings.query_expansion} images": settings.query_expansion,
        "after k-reciprocal re-ranking": settings.rerank,
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
