"""Table 4 in small: norm layers compared on domains they never saw, mean and standard deviation over seeds.

    python -m experiments.unseen_domain synthetic --workdir=runs/synthetic
    python -m experiments.unseen_domain folder --path=DIR --workdir=runs/folder
    python -m experiments.unseen_domain finetune --path=DIR --init=WEIGHTS --workdir=runs/finetune

`synthetic` trains on five drawn camera networks and evaluates on the sixth (configs/demo.py). `folder` leaves
each domain of DIR out in turn (configs/folder.py), and so does `finetune`, starting from a file of weights
(configs/finetune.py). Results gather in WORKDIR/results.jsonl; what stands there is not run again, so a stopped
study goes on where it was.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from configs import demo, finetune, folder
from metabin_jax.data import synthetic
from metabin_jax.data.records import read_folder
from metabin_jax.runlog import write_text
from metabin_jax.train import train

METHODS = ("bn", "in", "bin", "metabin")
CONFIGS = {"synthetic": demo, "folder": folder, "finetune": finetune}


def run(data: str, path: str, init: str, target: str, method: str, seed: int, workdir: Path) -> dict:
    """Trains one row without the target and evaluates on it; a finished run is only read."""
    config = CONFIGS[data].get_config()
    config.data.path = path
    config.init = init
    config.data.eval_domains = (target,)
    config.method = method
    config.seed = seed
    scores = train(config, workdir / f"{target}-{method}-{seed}")["targets"][target]
    return {"target": target, "method": method, "seed": seed} | {k: scores[k] for k in ("R-1", "mAP", "queries")}


def study(
    data: str, path: str, targets: Sequence[str], methods: Sequence[str], seeds: Sequence[int], workdir: Path,
    init: str = "",
) -> list[dict]:  # fmt: skip
    """All rows, each once, seed by seed; results.jsonl grows as they finish."""
    workdir.mkdir(parents=True, exist_ok=True)
    log = workdir / "results.jsonl"
    rows = read(log)
    for seed in seeds:
        for target in targets:
            for method in methods:
                if not any(_is(row, target, method, seed) for row in rows):
                    rows.append(run(data, path, init, target, method, seed, workdir))
                    write_text(log, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def read(log: Path) -> list[dict]:
    """The rows of a results.jsonl; none if there is no such file."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def _is(row: dict, target: str, method: str, seed: int) -> bool:
    return (row["target"], row["method"], row["seed"]) == (target, method, seed)


def table(rows: Sequence[dict]) -> str:
    """R-1 / mAP in % per method and target, mean ± std over seeds; last the mean over targets."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    columns = [*targets, "mean"] if len(targets) > 1 else targets
    lines = ["| norm | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        cells = [_cell([row for row in own if row["target"] == target]) for target in targets]
        if len(targets) > 1:
            seeds = sorted({row["seed"] for row in own})
            complete = [seed for seed in seeds if all(any(_is(r, t, method, seed) for r in own) for t in targets)]
            cells.append(_cell([_mean_over_targets(own, seed) for seed in complete]))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_over_targets(rows: Sequence[dict], seed: int) -> dict:
    own = [row for row in rows if row["seed"] == seed]
    return {metric: statistics.mean(row[metric] for row in own) for metric in ("R-1", "mAP")}


def _cell(rows: Sequence[dict]) -> str:
    def spread(metric: str) -> str:
        values = [100 * row[metric] for row in rows]
        std = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{std}"

    return f"{spread('R-1')} / {spread('mAP')}" if rows else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=tuple(CONFIGS))
    parser.add_argument("--path", default="", help="the folder of domains, for `folder` and `finetune`")
    parser.add_argument("--init", default="", help="the file of weights to start from")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--targets", nargs="+", help="default: underpass, or every domain of the folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    args = parser.parse_args()
    if args.data == "synthetic":
        targets = args.targets or synthetic.DOMAIN_NAMES[-1:]
    else:
        targets = args.targets or sorted({record.domain for record in read_folder(args.path)})
    print(table(study(args.data, args.path, targets, args.methods, args.seeds, args.workdir, args.init)))


if __name__ == "__main__":
    main()
