"""Table 1: R-1, R-5, R-10 and mAP on each unseen target, beside the numbers that the paper reports.

DualNorm and MetaBIN are trained here; they share the runs of Table 4. All other rows are the paper's, which it copied
from their authors. With --data=paper our numbers have the same columns, otherwise a table of their own.
"""

from collections.abc import Iterator, Sequence

from experiments import figures
from experiments.study import Job
from experiments.tables import Line, markdown, mean_std

METRICS = ("R-1", "R-5", "R-10", "mAP")
TARGETS = ("viper", "prid2011", "grid", "ilids")


# The paper's Table 1: method, type, source, then METRICS of each of TARGETS.
PAPER = """
DeepRank    S    target  38.4 69.2 81.3    -     -    -    -    -     -    -    -    -     -    -    -    -
NullReid    S    target  42.3 71.5 82.9    -  29.8 52.9 66.0    -     -    -    -    -     -    -    -    -
MTDnet      S    target  47.5 73.1 82.6    -  32.0 51.0 62.0    -     -    -    -    -  58.4 80.4 87.3    -
ImpTrpLoss  S    target  47.8 74.7 84.8    -  22.0    - 47.0    -     -    -    -    -  60.4 82.7 90.7    -
JLML        S    target  50.2 74.2 84.3    -     -    -    -    -  37.5 61.4 69.4    -     -    -    -    -
SSM         S    target  53.7    - 91.5    -     -    -    -    -  27.2    - 61.2    -     -    -    -    -
TJ-AIDL     UDA  M       38.5    -    -    -  26.8    -    -    -     -    -    -    -     -    -    -    -
MMFA        UDA  M       39.1    -    -    -  35.1    -    -    -     -    -    -    -     -    -    -    -
UDML        UDA  Comb1   31.5    -    -    -  24.2    -    -    -     -    -    -    -  49.3    -    -    -
SyRI        UDA  Comb2   43.0    -    -    -  43.0    -    -    -     -    -    -    -  56.5    -    -    -
DIMN        DG   MS      51.2 70.2 76.0 60.1  39.2 67.0 76.7 52.0  29.3 53.3 65.8 41.1  70.2 89.7 94.5 78.4
AugMining   DG   MS      49.8 70.8 77.0    -  34.3 56.2 65.7    -  46.6 67.5 76.1    -  76.3 93.0 95.3    -
DualNorm    DG   MS      53.9 62.5 75.3 58.0  60.4 73.6 84.8 64.9  41.4 47.4 64.7 45.7  74.8 82.0 91.5 78.5
MetaBIN     DG   MS      56.9 76.7 82.0 66.0  72.5 88.2 91.3 79.8  49.7 67.6 76.8 58.1  79.7 93.3 97.3 85.5
"""
SOURCE = (
    "paper (reported): Choi et al., CVPR 2021, Table 1, not measured here. S: supervised on the target; UDA: with its "
    "unlabelled images; DG: unseen. M: Market-1501; MS: the five sources of the benchmark; Comb1: VIPeR, PRID, CUHK01, "
    "i-LIDS and CAVIAR without the target; Comb2: CUHK03, DukeMTMC-reID and synthetic sets."
)


def measure(job: Job) -> Line:
    """scores: domain -> METRICS as fractions, from the run's evaluation."""
    scores = figures.scores(job).items()
    return job.head | {"scores": {domain: {m: numbers[m] for m in METRICS} for domain, numbers in scores}}


def report(lines: Sequence[Line]) -> str:
    by_target = sorted(lines, key=lambda line: line["target"])  # runs finish in any order
    domains = list(dict.fromkeys(domain for line in by_target for domain in line["scores"]))
    ours, theirs = list(_ours(lines, domains)), list(_theirs())
    words = (
        f"{' / '.join(METRICS)} in %; ours: mean ± standard deviation over seeds. The column seeds counts seeds with "
        "all targets."
    )
    if tuple(domains) == TARGETS:
        return f"{_table(domains, [*theirs, *ours])}\n\n{words}\n\n{SOURCE}"
    return f"{_table(domains, ours)}\n\n{words}\n\n{_table(TARGETS, theirs)}\n\n{SOURCE}"


def _table(domains: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown(["method", "type", "source", *domains, "seeds"], rows)


def _ours(lines: Sequence[Line], domains: Sequence[str]) -> Iterator[list[str]]:
    for run, name in figures.names_of_runs(lines).items():
        own = [line for line in lines if line["run"] == run]
        cells, seeds = [], {line["seed"] for line in own}
        for domain in domains:
            there = [line for line in own if domain in line["scores"]]
            score_SM = figures.per_seed(there, lambda line, d=domain: [100 * line["scores"][d][m] for m in METRICS])
            cells.append(" / ".join(mean_std(score_S) for score_S in score_SM.T))
            seeds &= {line["seed"] for line in there}
        yield [f"{name} (ours)", "DG", "all other domains", *cells, str(len(seeds))]


def _theirs() -> Iterator[list[str]]:
    for row in PAPER.strip().splitlines():
        method, kind, source, *numbers = row.split()
        each = [numbers[start : start + len(METRICS)] for start in range(0, len(numbers), len(METRICS))]
        cells = [" / ".join(values) if set(values) != {"-"} else "-" for values in each]
        yield [f"{method} (reported)", kind, source, *cells, "-"]


ANALYSIS = figures.Analysis("table1", __doc__, figures.from_table4("DualNorm", "MetaBIN"), measure, report)

if __name__ == "__main__":
    figures.main(ANALYSIS)
