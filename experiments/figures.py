"""A figure trains what it needs, measures every trained run, keeps the numbers and draws them.

Figures share their runs with the studies: a run that another table or figure has trained in the same WORKDIR is reused.
WORKDIR/NAME.jsonl gets one line of numbers per run. The picture and the printed words come from that file alone. A
figure takes the options of a study, and --redraw:

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
from experiments.command_line import command_line, in_one_sentence, parse
from experiments.settings import Setting
from experiments.study import Job, run_study
from experiments.tables import Line, Row, changed_fields
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import read_json, whole
from metabin_jax.training import trained
from metabin_jax.training.build import resolve
from metabin_jax.training.checkpoint import Checkpoints, has_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: colour-blind readers can tell them apart.
COLOURS = BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, PALE = "#707070", "#D4D4D4"
PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}  # module -> what pip calls it


@dataclass(frozen=True)
class Analysis:
    """How a figure is made.

    name: of its module. about: for --help. rows: what is trained. measure: a trained run -> its line, which begins with
    `Job.head`. report: lines -> text. draw: lines -> picture; None for a table. needs: modules, of PACKAGES, that
    `measure` imports.
    """

    name: str
    about: str
    rows: Callable[[Setting, Path], Sequence[Row]]
    measure: Callable[[Job], Line]
    report: Callable[[Sequence[Line]], str]
    draw: "Callable[[Sequence[Line]], Figure] | None" = None
    needs: tuple[str, ...] = ()


def from_table4(*names: str) -> Callable[[Setting, Path], Sequence[Row]]:
    """These rows of Table 4, on every setting."""
    return lambda setting, workdir: [row for row in table4.STUDY.rows if row.name in names]


def names_of_runs(lines: Sequence[Line]) -> dict[str, str]:
    """Row.run -> Row.name, for the rows of Table 4 that have lines."""
    present = {line["run"] for line in lines}
    return {row.run: row.name for row in table4.STUDY.rows if row.run in present}


def check_trained(job: Job) -> None:
    """Raises FileNotFoundError if results.jsonl has a line for the run, but its folder is gone."""
    if not has_checkpoint(job.folder):
        raise FileNotFoundError(
            f"{job.folder} holds no checkpoint, but {job.workdir / 'results.jsonl'} has its result: remove that "
            "line to train the run again"
        )


def restore(job: Job) -> tuple[ConfigDict, int, dict[str, Any]]:
    """The resolved config of a trained run, the step of its selected checkpoint and the variables at that step."""
    check_trained(job)
    if job.setting.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    run = trained.load(job.folder, resolve(job.config()))
    return run.config, run.step, run.variables


def scores(job: Job) -> dict[str, dict[str, float]]:
    """The evaluation of a trained run: domain -> metric -> fraction.

    Raises UserError if evaluation.json is of another checkpoint, of other domains, or of other settings than the job's.
    """
    check_trained(job)
    config = resolve(job.config())
    with Checkpoints(job.folder, scored=config.selection == "source_val", create=False) as checkpoints:
        expected = {"step": checkpoints.selected_step()}
    expected |= {name: config.eval[name] for name in ("policy", "metric", "rerank", "query_expansion")}
    file = job.folder / "evaluation.json"
    found = read_json(file)
    differ = [
        f"{name} {found.get(name)!r}, not {value!r}" for name, value in expected.items() if found.get(name) != value
    ]
    if set(found["targets"]) != set(config.data.eval_domains):
        differ.append(f"targets {', '.join(found['targets'])}, not {', '.join(config.data.eval_domains)}")
    if differ:
        raise UserError(
            f"{file} is of other settings than this study's ({'; '.join(differ)}): evaluate the run again by "
            f"metabin evaluate --model={job.folder}"
        )
    return found["targets"]


def per_seed(lines: Sequence[Line], value: Callable[[Line], ArrayLike]) -> NDArray[np.float64]:
    """The mean over targets of value(line), an array [...], for every seed that has all targets: [S, ...].

    Raises UserError if no seed has all targets.
    """
    targets = {line["target"] for line in lines}
    groups = [[value(line) for line in lines if line["seed"] == seed] for seed in sorted({x["seed"] for x in lines})]
    means = [np.mean(group, axis=0) for group in groups if len(group) == len(targets)]
    if not means:
        raise UserError(f"no seed has numbers for all of {', '.join(sorted(targets))}: run the missing ones")
    return np.array(means)


def deviation(value_S: NDArray) -> NDArray:
    """Standard deviation over the first axis, ddof 1; 0 for a single value."""
    return value_S.std(0, ddof=1) if len(value_S) > 1 else np.zeros(value_S.shape[1:])


def name_layers(panel: "Axes", layers: Sequence[str]) -> None:
    """Labels the x axis of a panel whose x values are layer numbers."""
    panel.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8 if len(layers) < 30 else 6)
    panel.set_xlabel("norm layer, from input to output")


def main(analysis: Analysis) -> None:
    """The command line of a figure."""
    parser = command_line(analysis.name, f"{analysis.about.strip()}\n\n{__doc__}")
    parser.add_argument("--redraw", type=Path, metavar="JSONL", help="draw these numbers; nothing is trained")
    with in_one_sentence(parser):
        args = parse(parser)
        needs = (*["matplotlib"] * bool(analysis.draw), *(() if args.redraw else analysis.needs))
        missing = [PACKAGES[module] for module in needs if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(f"it needs {' and '.join(missing)}: .venv/bin/pip install {' '.join(missing)}")
        log = args.redraw or args.workdir / f"{analysis.name}.jsonl"
        if args.redraw is None:
            rows = analysis.rows(args.setting, args.workdir)
            where = args.setting, args.seeds, args.workdir, args.targets, args.jobs
            run_study(rows, *where)
            run_study(rows, *where, work=analysis.measure, log_name=log.name)
        lines = study.read(log)
        if not lines:
            raise UserError(f"{log} holds no numbers")
        print("\n\n".join(filter(None, (analysis.report(lines), changed_fields(lines)))))
        if analysis.draw:
            print(f"\n{save(analysis.draw(lines), log.with_suffix('.png'))}")


def save(figure: "Figure", path: Path) -> Path:
    """Writes a PNG, complete or not at all; the same numbers give the same bytes."""
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return path
