"""Which method generalises best: every method on six unseen camera networks, its settings chosen on the sources.

    python -m experiments.comparison --together=12        on a GPU; without --together one run after the other

Each network is the target in turn and the others train (configs/networks.py). With the first seed every method gets the
same number of trials, TRIALS. For each target the trial with the best mAP on held-out identities of the sources is
chosen; no number of the target chooses anything. The other seeds train the chosen trial alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.beyond import beta_of
from experiments.command_line import command_line, in_one_sentence, parse
from experiments.settings import Setting
from experiments.study import Job, run_all, run_together
from experiments.tables import METRICS, Line, Row, markdown, mean_std, p_value

# Alpha and gamma vary together, so that methods without gamma have as many different trials as the others.
TRIALS: tuple[Mapping[str, Any], ...] = tuple(
    {"optimizer.alpha": alpha, "meta.gamma": gamma} for alpha, gamma in ((0.03, 0.5), (0.06, 2.0))
)
METHODS: dict[str, Mapping[str, Any]] = {
    "BN": {"method": "bn"},
    "IN": {"method": "in"},
    "BN+IN half": {"method": "half"},
    "DualNorm": {"method": "dualnorm"},
    "IBN-a": {"method": "ibn_a"},
    "BIN": {"method": "bin"},
    "BIN with MLDG": {"method": "bin_mldg"},
    "MixStyle": {"method": "mixstyle"},
    "BAU's losses": {"method": "bau"},
    "MetaBIN": {},
    "MetaBIN + cross-entropy": {
        "meta.train_losses": ("scatter", "shuffle", "triplet", "cross_entropy"),
        "meta.test_losses": ("triplet", "cross_entropy"),
    },
    "MetaBIN exact": {"meta.first_order": False},
    "MetaBIN with the code's beta": beta_of("official"),
}
COMPARED = [
    *((name, "BIN") for name in ("MetaBIN", "MetaBIN + cross-entropy")),
    *(("MetaBIN", name) for name in ("BN", "DualNorm", "IBN-a", "BIN with MLDG", "MixStyle", "BAU's losses")),
    *((name, "MetaBIN") for name in METHODS if name.startswith("MetaBIN ")),
    ("BIN", "BN"),
    ("BIN with MLDG", "BIN"),  # added when the results of the first seed were known
]
POWER = 0.8


def trials(method: str) -> list[Row]:
    return [Row(f"{method}, trial {number}", METHODS[method] | trial) for number, trial in enumerate(TRIALS, start=1)]


def chosen(lines: Sequence[Line], method: str, target: str) -> Row | None:
    """The trial with the best source_mAP for this target, by the seed that has all trials; None before they are run."""
    rows = {row.run: row for row in trials(method)}
    own = [line for line in lines if line["run"] in rows and line["target"] == target]
    for seed in sorted({line["seed"] for line in own}):
        of_seed = [line for line in own if line["seed"] == seed]
        if len(of_seed) == len(TRIALS):
            return rows[max(of_seed, key=lambda line: np.nan_to_num(line["source_mAP"]))["run"]]
    return None


def compare(
    methods: Sequence[str], setting: Setting, targets: Sequence[str], seeds: Sequence[int], workdir: Path,
    jobs: int, together: int,
) -> list[Line]:  # fmt: skip
    """Trains what is missing, and returns all lines. together: how many runs of a method share a program."""
    first, *others = seeds

    def of_trials(method: str) -> Iterator[Job]:
        yield from (Job(row, target, first, setting, workdir) for target in targets for row in trials(method))

    def of_others(method: str, lines: Sequence[Line]) -> Iterator[Job]:
        for seed in others:
            for target in targets:
                row = chosen(lines, method, target)
                assert row is not None
                yield Job(row, target, seed, setting, workdir)

    all_trials = [group for method in methods for group in cut(list(of_trials(method)), together)]
    lines = run_all(all_trials, setting, workdir, jobs, run_together)
    rest = [group for method in methods for group in cut(list(of_others(method, lines)), together)]
    return run_all(rest, setting, workdir, jobs, run_together)


def cut(jobs: Sequence[Job], size: int) -> list[Sequence[Job]]:
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


def pairs(lines: Sequence[Line], method: str) -> dict[tuple[str, int], Line]:
    """(target, seed) -> the line of the trial that is chosen for the target.

    Empty while a target lacks its trials: a mean over easy targets alone would pass for that of all.
    """
    rows = {target: chosen(lines, method, target) for target in sorted({line["target"] for line in lines})}
    if None in rows.values():
        return {}
    named = {target: row.run for target, row in rows.items() if row}
    return {(line["target"], line["seed"]): line for line in lines if named[line["target"]] == line["run"]}


class Difference(NamedTuple):
    """first - second in points, the mean over targets of the mean over the seeds that both have.

    low, high, p: of a t test over targets. visible: the least difference that this test at 5 % sees with a probability
    of POWER. ahead: on how many of the targets the first has the better mean. The seeds of a target share its networks,
    so they are not independent.
    """

    mean: float
    low: float
    high: float
    p: float
    visible: float
    pairs: int
    ahead: int
    targets: int


def difference(lines: Sequence[Line], first: str, second: str, metric: str) -> Difference:
    """Paired by target and seed."""
    a, b = pairs(lines, first), pairs(lines, second)
    points: dict[str, list[float]] = {}
    for key in sorted(a.keys() & b.keys()):
        points.setdefault(key[0], []).append(100 * (a[key][metric] - b[key][metric]))
    means = np.array([np.mean(of_target) for of_target in points.values()])
    counts = sum(map(len, points.values())), int(np.sum(means > 0)), len(means)
    if len(means) < 2:
        return Difference(float(means.mean()) if points else math.nan, *[math.nan] * 4, *counts)
    test, free = stats.ttest_1samp(means, 0), len(means) - 1
    error = means.std(ddof=1) / math.sqrt(len(means))
    visible = (stats.t.ppf(0.975, free) + stats.t.ppf(POWER, free)) * error
    interval = map(float, test.confidence_interval(0.95))
    return Difference(float(means.mean()), *interval, float(test.pvalue), float(visible), *counts)


def over_targets(of: Mapping[tuple[str, int], Line], metric: str) -> float:
    """The mean over targets of the mean over seeds, in %."""
    targets = {target for target, _ in of}
    means = [np.mean([line[metric] for (target, _), line in of.items() if target == one]) for one in targets]
    return 100 * float(np.mean(means))


def table(lines: Sequence[Line]) -> str:
    """R-1 on every target, mean ± standard deviation over seeds, and R-1 / mAP `over_targets`, in %."""
    targets = sorted({line["target"] for line in lines})
    body = []
    for method in METHODS:
        own = pairs(lines, method)
        if not own:
            continue
        by_target = [[100 * line["R-1"] for (name, _), line in own.items() if name == target] for target in targets]
        cells = [mean_std(values) if values else "-" for values in by_target]
        means = [f"{over_targets(own, metric):.1f}" for metric in METRICS]
        body.append([method, *cells, " / ".join(means), len(own)])
    return markdown(["R-1 in %", *targets, "mean R-1 / mAP", "pairs"], body)


def differences(lines: Sequence[Line], compared: Sequence[tuple[str, str]] = COMPARED) -> str:
    """A table of `difference` for pairs of methods that both have lines."""
    body = []
    for first, second in compared:
        found = [difference(lines, first, second, metric) for metric in METRICS]
        if found[0].pairs:
            r1 = found[0]
            is_one = r1.targets == 1  # which has no interval
            cells = [f"{d.mean:+.1f}" + ("" if is_one else f" [{d.low:+.1f}, {d.high:+.1f}]") for d in found]
            p, visible = ("-", "-") if is_one else (p_value(r1.p), f"{r1.visible:.1f}")
            body.append(
                [f"{first} - {second}", cells[0], p, cells[1], visible, f"{r1.ahead} of {r1.targets}", r1.pairs]
            )
    header = ["difference in points", "R-1 [95 % interval]", "p", "mAP [95 % interval]", "visible", "ahead", "pairs"]
    return markdown(header, body)


def choices(lines: Sequence[Line]) -> str:
    """How often each trial was chosen, out of the targets."""
    targets = sorted({line["target"] for line in lines})
    body = []
    for method in METHODS:
        rows = [chosen(lines, method, target) for target in targets]
        counts = [sum(row is not None and row.run == trial.run for row in rows) for trial in trials(method)]
        body += [[method, *counts]] * bool(sum(counts))
    header = [f"alpha {t['optimizer.alpha']:g}, gamma {t['meta.gamma']:g}" for t in TRIALS]
    return markdown(["trial chosen for so many targets", *header], body)


def report(lines: Sequence[Line]) -> str:
    return "\n\n".join((table(lines), differences(lines), choices(lines)))


def main() -> None:
    parser = command_line("comparison", __doc__)
    parser.set_defaults(data="networks")
    parser.add_argument("--rows", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS))
    parser.add_argument("--together", type=int, default=1, help="runs of a method that share a program; default: 1")
    with in_one_sentence(parser):
        args = parse(parser)
        targets = args.targets or args.setting.targets(supervised=False)
        where = args.setting, targets, args.seeds, args.workdir, args.jobs, args.together
        lines = compare(args.rows, *where)
    print(report(lines))


if __name__ == "__main__":
    main()
