"""Evaluation of a run's selected checkpoint on domains that it was not trained on."""

import dataclasses
import hashlib
import math
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from metabin_jax.algorithm import TrainState
from metabin_jax.data.records import Record, is_distractor
from metabin_jax.data.sets.splits import split_source
from metabin_jax.evaluation import QueryGallery, embed, protocols, query_gallery, retrieval_metrics, tables
from metabin_jax.evaluation.protocol import target_splits
from metabin_jax.evaluation.statistics import METRICS, summarise
from metabin_jax.evaluation.targets import TargetResult, evaluate_target
from metabin_jax.runtime.devices import say
from metabin_jax.runtime.errors import UserError, few
from metabin_jax.runtime.files import write_json, write_text
from metabin_jax.training import trained
from metabin_jax.training.build import Run, build_model, load_images, read
from metabin_jax.training.trained import Trained, beside, own_config
from metabin_jax.training.workdir import trained_on

# The fields that can change what an evaluation of a trained run measures.
MEASURED = (
    "data.source", "data.path", "data.identities", "data.protocol", "data.eval_domains", "data.height", "data.width",
    "selection", "eval.metric", "eval.policy", "eval.rerank", "eval.query_expansion", "eval.far",
)  # fmt: skip
RANKED_BY = ("policy", "metric", "rerank", "query_expansion")


def evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Evaluates the selected checkpoint of `workdir` on config.data.eval_domains; needs no source images.

    Writes evaluation.md, a table, and evaluation.json, and returns the latter: {"file", "step", "source_mAP", "policy",
    "metric", "rerank", "query_expansion", "targets", "benchmark"}. "targets" has for each domain "R-1", "R-5", "R-10",
    "mAP", "mINP" (fractions, means over splits), "queries" (number with a valid match), "unmatched" (paths of those
    without) and "verification" (the fields of `evaluation.Verification`). "benchmark" has the same with deviations and
    intervals, and what others reported (`evaluation.tables.as_dict`). None is what could not be measured.

    An evaluation with other settings than the run's own leaves the run's files as they are: its two files, and "file",
    have a name of their own (see `file_name`).

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
        own = [record for record in records if record.domain == domain]
        domain_splits(config, domain, own)
        if config.eval.policy == "cross-camera" and any(record.camid < 0 for record in own):
            say(f"{domain}: the cameras of some images are unknown, so queries are compared within cameras too")
    return records


def warn_of_trained(model: Path, images: Sequence[tuple[str, str, str]]) -> None:
    """Says which identities of images (path, domain, pid) the run was trained on; nothing for a file of weights."""
    for domain, pids in trained_on(model, images).items():
        number = len({pid for _, own, pid in images if own == domain})
        say(
            f"warning: {len(pids):,} of {number:,} identities of {domain} were trained on ({few(pids)}), so its "
            "numbers are better than on people whom the net has not seen"
        )


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
    name = file_name(own_config(run.workdir), config)
    file = beside(run.workdir, f"{name}.json")
    ranked_by = {field: config.eval[field] for field in RANKED_BY}
    score = tables.none_for_nan({"source_mAP": run.source_mAP})
    results: dict[str, Any] = {"file": file.name, "step": run.step, **score, **ranked_by, "targets": {}}
    if images is not None:
        measured = measure(run, records, images)
        benchmark = tables.as_dict(_protocol(config), summarise(measured), _how(run))
        for result in measured:
            ours = benchmark["results"][result.target]
            results["targets"][result.target] = {
                **{metric: ours[metric]["mean"] for metric in METRICS},
                "queries": ours["queries"],
                "unmatched": list(result.unmatched),
                "verification": tables.none_for_nan(dataclasses.asdict(result.verification)),
            }
        results["benchmark"] = benchmark
        write_text(file.with_suffix(".md"), tables.markdown(benchmark))
    write_json(file, results)
    return results


def file_name(own: ConfigDict, config: ConfigDict) -> str:
    """The name, without its suffix, of the files of an evaluation by `config` in a run whose own config is `own`.

    It is "evaluation". If fields of MEASURED differ, FIELD=VALUE of each follows, without the field's group, and eight
    digits of a SHA-256, as other characters than letters, digits and "._+,=-" become "_" and only 80 are kept.
    """
    values = zip(MEASURED, *(operator.attrgetter(*MEASURED)(of) for of in (own, config)), strict=True)
    changed = {field.rpartition(".")[2]: value for field, before, value in values if value != before}
    if not changed:
        return "evaluation"
    words = (f"{field}={','.join(value) if isinstance(value, tuple) else value}" for field, value in changed.items())
    plain = re.sub("[^A-Za-z0-9._+,=-]", "_", "-".join(words))[:80]
    return f"evaluation-{plain}-{hashlib.sha256(repr(changed).encode()).hexdigest()[:8]}"


def measure(
    run: Trained, records: Sequence[Record], images: np.ndarray, listed: int = 0, bins: int = 0
) -> list[TargetResult]:
    """What the run's evaluation measures on each of its domains, which have these records and images.

    listed, bins: as in `evaluate_target`.
    """
    config = run.config
    settings = {field: config.eval[field] for field in (*RANKED_BY, "far")}
    domain_of_row = np.array([record.domain for record in records])
    results = []
    for domain in config.data.eval_domains:
        rows = np.flatnonzero(domain_of_row == domain)
        own = [records[row] for row in rows.tolist()]
        splits, source = domain_splits(config, domain, own)
        used = [own[row] for row in np.unique(np.concatenate([row for split in splits for row in split[:2]])).tolist()]
        warn_of_trained(
            run.workdir, [(record.path, domain, record.identity) for record in used if not is_distractor(record)]
        )

        def embed_rows(some: np.ndarray, rows: np.ndarray = rows) -> np.ndarray:
            return embed(run.model, run.variables, images, config.eval.batch_size, rows[some])

        result = evaluate_target(domain, own, embed_rows, splits, source, listed=listed, bins=bins, **settings)
        results.append(result)
    return results


def source_score(run: Run, images: np.ndarray, state: TrainState) -> float:
    """mAP on held-out source identities, mean over the sources; nan where no query has a match."""
    config, data = run.config, run.data
    variables = {"params": state.params, "rho": state.rho, "batch_stats": state.batch_stats}
    model = build_model(config, data.num_ids)
    scores = []
    for rows in data.held_out.values():
        split = query_gallery([data.records[row] for row in rows.tolist()], config.eval.policy)
        feature_ND = embed(model, variables, images, config.eval.batch_size, rows=rows)
        query_QD, gallery_GD = feature_ND[split.query_row], feature_ND[split.gallery_row]
        scores.append(retrieval_metrics(query_QD, gallery_GD, *split.labels, config.eval.metric).mAP)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else math.nan


def _protocol(config: ConfigDict) -> protocols.Protocol:
    if config.data.protocol:
        return protocols.load(config.data.protocol)
    data = config.data
    return protocols.Protocol("", data.train_domains, data.train_splits, data.eval_domains, data.domain_by)


def _how(run: Trained) -> list[str]:
    """What our numbers are of, and what was done beyond the ranking that others report."""
    config = run.config
    steps = {
        f"by {config.eval.metric} distance": config.eval.metric != "cosine",
        "images of the query's own camera count": config.eval.policy == "ignore",
        f"after query expansion by {config.eval.query_expansion} images": config.eval.query_expansion,
        "after k-reciprocal re-ranking": config.eval.rerank,
    }
    done = [words for words, is_done in steps.items() if is_done]
    return [f"{config.method}, {config.model.name}, {f'step {run.step}' if run.step else run.workdir.name}", *done]
