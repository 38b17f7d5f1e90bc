"""What a study found: mean and deviation over seeds beside the paper's numbers, and paired tests of two rows."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

METRICS = ("R-1", "mAP")
# The paper does not give the fixed beta of Tables 2 and 3: the mean of the cycle, so that cycling alone differs.
FIXED_BETA = {"meta.beta_low": 0.0505, "meta.beta_high": 0.0505}
ROUNDING = 1e-9  # differences of metrics closer than this are equal
# One line of results.jsonl: run (Row.run), target, seed, R-1 and mAP (fractions), queries; config, if the command line
# changed fields of it. Newer runs with MetaBIN's inner step also have rho_change, |rho' - rho|, and clipped, the share
# that the inner step took out of [0, 1]: both means over channels and logged steps.
Line = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    overrides: config field -> value, on top of the setting's config. paper: R-1 and mAP that the paper reports, in %.
    supervised: trained and tested on different people of one domain; otherwise the target is unseen. sources: how many
    source domains train, the first ones in the setting's order; 0 means all.
    """

    name: str
    overrides: Mapping[str, Any]
    paper: tuple[float, float] | None = None
    supervised: bool = False
    sources: int = 0

    @property
    def run(self) -> str:
        """What is trained, as one text: rows of different tables with the same text share their runs."""
        overrides = {"method": "metabin", **self.overrides}
        words = [f"{field}={value}" for field, value in sorted(overrides.items())]
        return " ".join(words + ["supervised"] * self.supervised + [f"sources={self.sources}"] * bool(self.sources))


def table(rows: Sequence[Row], lines: Sequence[Line], field: str = "") -> str:
    """R-1 / mAP in % per row and target, mean ± std over seeds; then the mean over targets and the paper's numbers.

    Leaves out rows that have neither a result nor a number of the paper's. The mean and the column `seeds` take the
    seeds that have every target. field: adds a column with the mean of this field over the lines that have it.
    """
    lines = [line for line in lines if line["run"] in {row.run for row in rows}]
    targets = sorted({line["target"] for line in lines})
    with_mean, with_paper = len(targets) > 1, any(row.paper for row in rows)
    header = ["row", *targets, *["mean"] * with_mean, "seeds", *["paper (reported)"] * with_paper]
    header += [field] * bool(field)
    body = []
    for row in rows:
        own = [line for line in lines if line["run"] == row.run]
        if not own and not row.paper:
            continue
        means = by_seed(lines, row)
        cells = [_cell([line for line in own if line["target"] == target]) for target in targets]
        cells += [_cell(list(means.values()))] * with_mean + [str(len(means))]
        cells += [" / ".join(f"{value:.1f}" for value in row.paper or ()) or "-"] * with_paper
        values = [line[field] for line in own if field in line]
        cells += [f"{statistics.mean(values):.2g}" if values else "-"] * bool(field)
        body.append([row.name, *cells])
    return markdown(header, body)


def changed_fields(lines: Sequence[Line]) -> str:
    """A sentence on the config fields that the command line changed for all lines; "" without such fields."""
    fields = lines[0].get("config", {}) if lines else {}
    return f"All rows with {' '.join(f'--config.{field}={text}' for field, text in fields.items())}." if fields else ""


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in GitHub's Markdown."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (header, ["---"] * len(header), *rows))


def by_seed(lines: Sequence[Line], row: Row) -> dict[int, dict[str, float]]:
    """Seed -> metrics of `row`, means over all targets in `lines`. Leaves out a seed that lacks a target."""
    targets = {line["target"] for line in lines}
    means = {}
    for seed in sorted({line["seed"] for line in lines if line["run"] == row.run}):
        own = [line for line in lines if (line["run"], line["seed"]) == (row.run, seed)]
        if {line["target"] for line in own} == targets:
            means[seed] = mean_scores(own)
    return means


def _cell(scores: Sequence[Mapping[str, float]]) -> str:
    return " / ".join(mean_std([100 * score[metric] for score in scores]) for metric in METRICS) if scores else "-"


def mean_std(value_S: ArrayLike, digits: int = 1) -> str:
    """Mean and standard deviation (ddof 1) as "12.3 ± 0.4"; of a single value, the value."""
    values = np.asarray(value_S, float)
    std = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{std}"


def mean_scores(scores: Collection[Mapping[str, float]]) -> dict[str, float]:
    """METRICS as means over the domains that a run was evaluated on: one, or the paper's four."""
    return {metric: statistics.mean(score[metric] for score in scores) for metric in METRICS}


class Paired(NamedTuple):
    """difference: mean of first - second over `seeds` seeds, a fraction. low, high: its 95 % interval. p: two-sided."""

    difference: float
    low: float
    high: float
    p: float
    seeds: int


def paired_test(lines: Sequence[Line], first: Row, second: Row, metric: str) -> Paired:
    """Paired t test of two rows over the seeds that both have, on the means over their targets.

    Without a seed, the difference is nan. The interval and p need two seeds and differences that vary; otherwise they
    are nan.
    """
    lines = [line for line in lines if line["run"] in (first.run, second.run)]
    a, b = by_seed(lines, first), by_seed(lines, second)
    seeds = sorted(a.keys() & b.keys())
    first_S, second_S = (np.array([scores[seed][metric] for seed in seeds]) for scores in (a, b))
    difference_S = first_S - second_S
    mean = float(difference_S.mean()) if seeds else math.nan
    if len(seeds) < 2 or np.ptp(difference_S) < ROUNDING:
        return Paired(mean, math.nan, math.nan, math.nan, len(seeds))
    test = stats.ttest_rel(first_S, second_S)
    return Paired(mean, *map(float, test.confidence_interval(0.95)), float(test.pvalue), len(seeds))


def differences(lines: Sequence[Line], pairs: Sequence[tuple[Row, Row]]) -> str:
    """A table of `paired_test`, in points, for every pair that has a seed in common; "" without such a pair."""
    body = []
    for first, second in pairs:
        tests = [paired_test(lines, first, second, metric) for metric in METRICS]
        cells = [cell for test in tests for cell in _difference(test)]
        body += [[f"{first.name} - {second.name}", *cells, tests[0].seeds]] * bool(tests[0].seeds)
    header = ["difference", *(cell for metric in METRICS for cell in (f"{metric} [95 % interval]", "p")), "seeds"]
    return markdown(header, body) if body else ""


def _difference(test: Paired) -> tuple[str, str]:
    mean, low, high = (f"{100 * value:+.1f}" for value in (test.difference, test.low, test.high))
    return mean if math.isnan(test.p) else f"{mean} [{low}, {high}]", p_value(test.p)


def p_value(p: float) -> str:
    """In three decimals; "-" for nan."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
