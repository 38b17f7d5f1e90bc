"""Results as plain data, and from that as a console table and as Markdown. What others reported has rows of its own.

"56.9 ± 3.0 [53.1, 60.8]" is, in %, a mean, the deviation over the splits, and the 95 % interval of the mean.
"""

import html
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from metabin_jax.evaluation.protocols import Protocol
from metabin_jax.evaluation.statistics import MEAN, METRICS, Summary
from metabin_jax.runtime.errors import printable

HEADER = ("target", "result", *METRICS, "splits", "queries")
OURS, REPORTED = "ours", "paper (reported)"
INTERVAL_NOTE = "ours: mean [95 % interval from resampled persons], in %"
SPLITS_NOTE = "ours: mean ± deviation over the splits [95 % interval from resampled persons and splits], in %"


def as_dict(protocol: Protocol, summaries: Sequence[Summary], ours: Sequence[str] = ()) -> dict[str, Any]:
    """What JSON can hold (None for nan): ours in fractions, what others reported in %, as they did.

    ours: how our numbers came about, for the notes.
    """
    # The mean over all of the protocol's targets says nothing about that over some of them.
    complete = {summary.name for summary in summaries} >= set(protocol.targets)
    notes = [
        SPLITS_NOTE if any(s.splits > 1 for s in summaries) else INTERVAL_NOTE,
        *(f"{OURS}: {how}" for how in ours),
    ]
    notes += [f"splits of {s.name}: {s.split_source}" for s in summaries if s.split_source]
    notes += [f"{s.name}: {s.unmatched:,} queries have no match and are left out" for s in summaries if s.unmatched]
    notes += [f"{REPORTED}: {p.label}: not measured here; {p.source}" for p in protocol.published]
    return {
        "protocol": protocol.name,
        "results": {
            summary.name: {
                **{metric: none_for_nan(estimate._asdict()) for metric, estimate in summary.estimates.items()},
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
                "results": {**published.targets, MEAN: published.mean if complete else {}},
            }
            for published in protocol.published
        ],
        "notes": [*notes, *protocol.withdrawn],
    }


def console(benchmark: Mapping[str, Any]) -> str:
    """Aligned columns of what `as_dict` returned, the notes below; intervals for R-1 and mAP only, or it gets wide."""
    rows = [HEADER, *_rows(benchmark, intervals=("R-1", "mAP"))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *benchmark["notes"]]) + "\n"


def markdown(benchmark: Mapping[str, Any]) -> str:
    """A table in GitHub's Markdown of what `as_dict` returned, the notes as a list below."""
    rows = [HEADER, *_rows(benchmark, intervals=METRICS)]
    lines = [f"| {' | '.join(map(_plain, row))} |" for row in rows]
    rule = f"|{' --- |' * len(HEADER)}"
    notes = (f"- {_plain(note)}" for note in benchmark["notes"])
    return "\n".join([lines[0], rule, *lines[1:], "", *notes]) + "\n"


def _plain(text: str) -> str:
    """The text in Markdown that shows it as it is. A name may hold HTML, links and the end of a cell."""
    text = html.escape(printable(" ".join(text.split())), quote=False)
    return re.sub(r"([\\`*|~]|(?<!\w)_|_(?!\w)|\[(?=[^\]]*\]\())", r"\\\1", text)


def _rows(benchmark: Mapping[str, Any], intervals: Collection[str]) -> list[tuple[str, ...]]:
    rows = []
    for name, numbers in benchmark["results"].items():
        ours = [_ours(numbers[metric], metric in intervals) for metric in METRICS]
        rows.append((name, OURS, *ours, str(numbers["splits"]), f"{numbers['queries']:,}"))
        for published in benchmark["published_percent"]:
            reported = published["results"].get(name)
            if reported:
                theirs = [_theirs(reported, metric) for metric in METRICS]
                rows.append((name, published["label"], *theirs, "", ""))
    return rows


def _ours(estimate: Mapping[str, float | None], with_interval: bool) -> str:
    mean, interval = figures(estimate)
    return f"{mean} {interval}".rstrip() if with_interval else mean


def figures(estimate: Mapping[str, float | None]) -> tuple[str, str]:
    """Of an `Estimate` as a mapping without nan, in %: "56.9 ± 3.0" and "[53.1, 60.8]"; "n/a" and "" for None."""
    percent = {name: 100 * value for name, value in estimate.items() if value is not None}
    if "mean" not in percent:
        return "n/a", ""
    deviation = f" ± {percent['std']:.1f}" if "std" in percent else ""
    interval = f"[{percent['low']:.1f}, {percent['high']:.1f}]" if "low" in percent else ""
    return f"{percent['mean']:.1f}{deviation}", interval


def _theirs(numbers: Mapping[str, Sequence[float | None]], metric: str) -> str:
    mean, deviation = numbers.get(metric, (None, None))
    if mean is None:
        return "-"
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def none_for_nan(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if value is None or math.isnan(value) else value for name, value in numbers.items()}
