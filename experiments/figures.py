"""Figures and tables of numbers that a training does not write down: measured on trained runs, kept, drawn.

The runs are those of the studies: what another table or figure has trained in the same WORKDIR is not trained again.
What is measured on them gathers in WORKDIR/NAME.jsonl, a line per run; the picture and the words come from that file
alone. The command line is that of a study, and

    python -m experiments.fig4 --jobs=2                       WORKDIR/fig4.jsonl and fig4.png
    python -m experiments.fig4 --redraw=FILE.jsonl            FILE.png from the numbers of FILE.jsonl
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import ArrayLike, NDArray

from experiments import study, table4
from experiments.settings import Setting
from experiments.study import Job, command_line, parse, run_study
from experiments.tables import Line, Row
from metabin_jax.runtime.files import read_json, whole
from metabin_jax.training import trained
from metabin_jax.training.build import resolve
from metabin_jax.training.checkpoint import has_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart too.
COLOURS = BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, PALE = "#707070", "#D4D4D4"
PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}  # module -> what pip calls it


@dataclass(frozen=True)
class Analysis:
    """name: of its module. rows: what is trained. measure: the line of a trained run, "run", "target" and "seed" first.

    report: the lines in words; draw: in a picture, None for a table. needs: modules, of PACKAGES, without which nothing
    can be measured.
    """

    name: str
    rows: Callable[[Setting, Path], Sequence[Row]]
    measure: Callable[[Job], Line]
    report: Callable[[Sequence[Line]], str]
    draw: "Callable[[Sequence[Line]], Figure] | None" = None
    needs: tuple[str, ...] = ()


def from_table4(*names: str) -> Callable[[Setting, Path], Sequence[Row]]:
    """These rows of Table 4, whatever the setting."""
    return lambda setting, workdir: [row for row in table4.STUDY.rows if row.name in names]


def names_of_runs(lines: Sequence[Line]) -> dict[str, str]:
    """Row.run -> Row.name of the rows of Table 4 that have lines."""
    present = {line["run"] for line in lines}
    return {row.run: row.name for row in table4.STUDY.rows if row.run in present}


def key_of(job: Job) -> Line:
    """What the line of a job begins with."""
    return {"run": job.row.run, "target": job.target, "seed": job.seed}


def check_trained(job: Job) -> None:
    """Raises FileNotFoundError for a run that results.jsonl knows and whose folder is gone."""
    if not has_checkpoint(job.folder):
        raise FileNotFoundError(
            f"{job.folder} holds no checkpoint, but {job.workdir / 'results.jsonl'} has its result: remove that line, "
            "and the run is trained again"
        )


def restore(job: Job) -> tuple[ConfigDict, int, dict[str, Any]]:
    """The resolved config of a trained run, the step of its selected checkpoint and the variables at that step."""
    check_trained(job)
    if job.setting.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    run = trained.load(job.folder, resolve(job.config()))
    return run.config, run.step, run.variables


def scores(job: Job) -> dict[str, dict[str, float]]:
    """What the evaluation of a trained run measured: domain -> metric -> fraction."""
    check_trained(job)
    return read_json(job.folder / "evaluation.json")["targets"]


def per_seed(lines: Sequence[Line], value: Callable[[Line], ArrayLike]) -> NDArray[np.float64]:
    """value(line), an array [...], as the mean over targets for every seed: [S, ...]. A seed without all is left out.

    Raises ValueError where no seed is left.
    """
    targets = {line["target"] for line in lines}
    groups = [[value(line) for line in lines if line["seed"] == seed] for seed in sorted({x["seed"] for x in lines})]
    means = [np.mean(group, axis=0) for group in groups if len(group) == len(targets)]
    if not means:
        raise ValueError(f"no seed has numbers for all of {', '.join(sorted(targets))}: run the missing ones")
    return np.array(means)


def deviation(value_S: NDArray) -> NDArray:
    """Over the first axis, ddof 1; 0 of a single value."""
    return value_S.std(0, ddof=1) if len(value_S) > 1 else np.zeros(value_S.shape[1:])


def name_layers(panel: "Axes", layers: Sequence[str]) -> None:
    """The x axis of a panel whose x are the numbers of the layers."""
    panel.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8 if len(layers) < 30 else 6)
    panel.set_xlabel("norm layer, from input to output")


def main(analysis: Analysis) -> None:
    """The command line of a figure."""
    parser = command_line(analysis.name, __doc__)
    parser.add_argument("--redraw", type=Path, metavar="JSONL", help="draw these numbers; nothing is trained")
    try:
        args = parse(parser)
        needs = (*["matplotlib"] * bool(analysis.draw), *(() if args.redraw else analysis.needs))
        missing = [PACKAGES[module] for module in needs if importlib.util.find_spec(module) is None]
        if missing:
            raise ValueError(f"it needs {' and '.join(missing)}: .venv/bin/pip install {' '.join(missing)}")
        log = args.redraw or args.workdir / f"{analysis.name}.jsonl"
        if args.redraw is None:
            rows = analysis.rows(args.setting, args.workdir)
            where = args.setting, args.seeds, args.workdir, args.targets, args.jobs
            run_study(rows, *where)
            run_study(rows, *where, work=analysis.measure, log_name=log.name)
        lines = study.read(log)
        if not lines:
            raise ValueError(f"{log} holds no numbers")
        print(analysis.report(lines))
        if analysis.draw:
            print(f"\n{save(analysis.draw(lines), log.with_suffix('.png'))}")
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def save(figure: "Figure", path: Path) -> Path:
    """Writes a PNG, whole or not at all; the same numbers give the same bytes."""
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return path
