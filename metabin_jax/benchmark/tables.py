"""Results as a console table, as Markdown and as plain data. What others reported stands in rows of its own.

"56.9 ± 3.0 [53.1, 60.8]" is, in %, a mean, the deviation over the splits, and the 95 % interval of the mean.
"""

import math
from collections.abc import Sequence
from typing import Any

from metabin_jax.benchmark.protocols import Numbers, Protocol
from metabin_jax.benchmark.statistics import MEAN, METRICS, Estimate, Summary

HEADER = ("target", "result", *METRICS, "splits", "queries")
OURS, REPORTED = "ours", "paper (reported)"
INTERVAL_NOTE = "ours: mean ± deviation over the splits [95 % interval from resampled persons and splits], in %"


def console(protocol: Protocol, summaries: Sequence[Summary]) -> str:
    """Aligned columns, the notes below."""
    rows = [HEADER, *_rows(protocol, summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *notes(protocol, summaries)]) + "\n"


def markdown(protocol: Protocol, summaries: Sequence[Summary]) -> str:
    """A table in GitHub's Markdown, the notes as a list below."""
    rows = [HEADER, ("---",) * len(HEADER), *_rows(protocol, summaries)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(protocol, summaries))]) + "\n"


def as_dict(protocol: Protocol, summaries: Sequence[Summary]) -> dict[str, Any]:
    """What JSON can hold (None for nan): ours in fractions, what others reported in %, as they did."""
    return {
        "protocol": protocol.name,
        "results": {
            summary.name: {
                **{metric: _data(estimate) for metric, estimate in summary.estimates.items()},
                "splits": summary.splits,
                "queries": summary.queries,
                "unmatched": summary.unmatched,
            }
            for summary in summaries
        },
        "published_percent": [
            {
                "label": f"{REPORTED}: {published.label}",
                "source": published.source,
                "results": {
                    name: dict(numbers) for name, numbers in {**published.targets, MEAN: published.mean}.items()
                },
            }
            for published in protocol.published
        ],
        "notes": notes(protocol, summaries),
    }


def notes(protocol: Protocol, summaries: Sequence[Summary]) -> list[str]:
    """What a reader must know: intervals, origin of the splits, queries left out, whose numbers the others are."""
    lines = [INTERVAL_NOTE]
    lines += [f"splits of {summary.name}: {summary.split_source}" for summary in summaries if summary.name != MEAN]
    lines += [f"{s.name}: {s.unmatched:,} queries have no match and are left out" for s in summaries if s.unmatched]
    lines += [f"{REPORTED}: {p.label}: not measured here; {p.source}" for p in protocol.published]
    return [*lines, *protocol.withdrawn]


def _rows(protocol: Protocol, summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    complete = {summary.name for summary in summaries} >= set(protocol.targets)
    rows = []
    for summary in summaries:
        ours = [_ours(summary.estimates[metric]) for metric in METRICS]
        rows.append((summary.name, OURS, *ours, str(summary.splits), f"{summary.queries:,}"))
        for published in protocol.published:
            # The mean over all of the protocol's targets says nothing about that over some of them.
            numbers = published.targets.get(summary.name, published.mean if complete and summary.name == MEAN else {})
            if numbers:
                theirs = [_theirs(numbers, metric) for metric in METRICS]
                rows.append((summary.name, f"{REPORTED}: {published.label}", *theirs, "", ""))
    return rows


def _ours(estimate: Estimate) -> str:
    deviation = "" if estimate.std is None else f" ± {100 * estimate.std:.1f}"
    return f"{100 * estimate.mean:.1f}{deviation} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _theirs(numbers: Numbers, metric: str) -> str:
    mean, deviation = numbers.get(metric, (None, None))
    if mean is None:
        return "-"
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _data(estimate: Estimate) -> dict[str, float | None]:
    return {name: None if value is None or math.isnan(value) else value for name, value in estimate._asdict().items()}
