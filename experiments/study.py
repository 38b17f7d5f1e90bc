"""A study: rows x targets x seeds, each trained and evaluated once, and a table of them beside the paper's numbers.

Results gather in WORKDIR/results.jsonl, one line per finished run; what stands there is not run again, so a stopped
study goes on where it was, and tables share the rows that they have in common. experiments/table2.py and others hold
the rows; the command line is the same for all:

    python -m experiments.table4 --jobs=2                            five drawn camera networks, and a sixth unseen
    python -m experiments.table4 --data=folder --path=DIR            each domain of DIR left out in turn
    python -m experiments.table4 --data=finetune --path=DIR --init=WEIGHTS
    python -m experiments.table4 --data=paper --init=mobilenetv2_1.4.pth         the sets of `metabin prepare`
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import re
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments import settings
from experiments.settings import Setting
from experiments.tables import Line, Row, differences, mean_scores, table
from metabin_jax.runtime.files import write_text
from metabin_jax.runtime.runlog import read_rows
from metabin_jax.training.train import train


@dataclass(frozen=True)
class Study:
    """name: of its module. source: where the paper's numbers stand. compare: pairs of rows to test.

    field: what else of the lines the table shows, such as "rho_change".
    """

    name: str
    rows: tuple[Row, ...]
    compare: Sequence[tuple[str, str]]
    source: str = ""
    field: str = ""


@dataclass(frozen=True)
class Job:
    """One run of a study, in a folder of its own below `workdir`."""

    row: Row
    target: str
    seed: int
    setting: Setting
    workdir: Path

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells runs apart."""
        return self.row.run, self.target, self.seed

    @property
    def folder(self) -> Path:
        name = re.sub(r"[^a-z0-9]+", "-", self.row.run.lower()).strip("-")
        return self.workdir / f"{self.target}-{name}-{self.seed}"

    def config(self) -> ConfigDict:
        """What is trained. Raises ValueError where the setting has too few sources for the row."""
        config = self.setting.config(self.target, self.row.supervised, self.workdir, self.row.sources)
        config.update_from_flattened_dict(dict(self.row.overrides))
        config.seed = self.seed
        return config


def run_job(job: Job) -> Line:
    """Trains and evaluates; the line has `mean_scores`."""
    if job.setting.smoke:
        jax.config.update("jax_disable_most_optimizations", True)  # half of the time to compile
    scores = list(train(job.config(), job.folder)["targets"].values())
    queries = sum(score["queries"] for score in scores)
    line = {"run": job.row.run, "target": job.target, "seed": job.seed, **mean_scores(scores), "queries": queries}
    inner = [row for row in read_rows(job.folder / "metrics.jsonl") if "inner/rho_change" in row]
    fields = ("rho_change", "clipped") if inner else ()
    return line | {field: statistics.mean(row[f"inner/{field}"] for row in inner) for field in fields}


def run_study(
    rows: Sequence[Row], setting: Setting, seeds: Sequence[int], workdir: Path, targets: Sequence[str] = (),
    jobs: int = 1, work: Callable[[Job], Line] = run_job, log_name: str = "results.jsonl",
) -> list[Line]:  # fmt: skip
    """All runs, each once, seed by seed; returns the lines of the log in `workdir`, which grows as they finish.

    targets: those to evaluate on; default: all of the setting. jobs: how many processes run at once. work: what a run
    is; its line has the "run", "target" and "seed" of the job. Raises ValueError when another study works in `workdir`,
    when it has results of another setting, and as training does; then no further run is started.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir):
        log = workdir / log_name
        lines = read(log)
        done = {(line["run"], line["target"], line["seed"]) for line in lines}
        everything = [
            Job(row, target, seed, setting, workdir)
            for seed in dict.fromkeys(seeds)
            for row in rows
            for target in dict.fromkeys(targets or setting.targets(row.supervised))
        ]
        todo = [job for job in everything if job.key not in done]
        for job in todo:
            job.config()  # none is started where one cannot be
        setting.keep(workdir, has_results=bool(lines))
        for target in dict.fromkeys(job.target for job in todo if job.row.supervised):
            setting.halve(target, workdir)
        jobs = min(jobs, len(todo))
        for line in _in_processes(todo, jobs, work) if jobs > 1 else map(work, todo):
            lines.append(line)
            write_text(log, "".join(json.dumps(each) + "\n" for each in lines))  # whole or not at all
    return lines


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    with (workdir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another study runs in {workdir}: wait for it, or choose another --workdir") from None
        yield


def _in_processes(todo: Sequence[Job], jobs: int, work: Callable[[Job], Line]) -> Iterator[Line]:
    """Results as they come. After an error no run is started; it is raised once those on their way are through."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that uses JAX may hang
    numbers = spawn.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    with ProcessPoolExecutor(jobs, spawn, initializer=_start_worker, initargs=(numbers, jobs)) as pool:
        futures = [pool.submit(work, job) for job in todo]
        errors = []
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield future.result()
                    continue
                errors.append(error)
                for other in futures:
                    other.cancel()
        except BaseException:  # Ctrl-C; otherwise a worker that is still starting is waited for, as it needs `numbers`
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if errors:
            raise errors[0]


def _start_worker(numbers: SimpleQueue, jobs: int) -> None:
    """A worker keeps to its share of the cores, and ends with its study, beside whose next start it must not train."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[numbers.get() % len(cores) :: jobs])
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read(log: Path) -> list[Line]:
    """The lines of a results.jsonl; none if there is no such file. Raises ValueError for a line that is not JSON."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{log} has a line that is not JSON ({error}): remove it, and its run is done again") from None


def report(study: Study, lines: Sequence[Line], compare: Sequence[Sequence[str]]) -> str:
    """The table of unseen targets, that of supervised ones, paired tests, and whose numbers the paper's are."""
    blocks = [[row for row in study.rows if row.supervised is supervised] for supervised in (False, True)]
    parts = [table(block, lines, study.field) for block in blocks if block]
    parts.append("R-1 / mAP in %, mean ± standard deviation over seeds.")
    rows = {row.name: row for row in study.rows}
    tests = differences(lines, [(rows[first], rows[second]) for first, second in compare])
    if tests:
        parts += [tests, "In points; p: two-sided paired t test over seeds, not corrected for the number of tests."]
    if study.source:
        parts.append(f"paper (reported): {study.source}, with its net on its data; not measured here.")
    return "\n\n".join(parts)


def command_line(name: str, description: str | None) -> argparse.ArgumentParser:
    """What every study can be told."""
    parser = argparse.ArgumentParser(
        prog=f"experiments.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=settings.NAMES, default="synthetic")
    parser.add_argument("--path", default="", help="the folder of domains, or the data_dir of `metabin prepare`")
    parser.add_argument("--init", default="", help="the file of weights to start from")
    parser.add_argument("--workdir", type=Path, help="default: runs/studies-DATA, and -smoke")
    parser.add_argument("--targets", nargs="+", default=(), help="default: underpass, or every domain of the folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--jobs", type=int, help="processes that run at once; default: 1, with --smoke 2")
    parser.add_argument("--smoke", action="store_true", help="show only that it runs: a tiny net, two steps, one seed")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with defaults that depend on others, and the `setting` that they make. Raises as `Setting`."""
    args = parser.parse_args()
    if args.targets and args.data == "paper":
        parser.error("--targets: the paper's sets are evaluated together, by one run")
    args.workdir = args.workdir or Path("runs", f"studies-{args.data}{'-smoke' * args.smoke}")
    args.seeds = args.seeds[:1] if args.smoke else args.seeds
    args.jobs = 1 + args.smoke if args.jobs is None else args.jobs
    if args.jobs < 1:
        parser.error("--jobs: at least one")
    args.setting = Setting(args.data, args.path, args.init, args.smoke)
    return args


def main(study: Study) -> None:
    """The command line of a study."""
    names = [row.name for row in study.rows]
    parser = command_line(study.name, __doc__)
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", default=names, help=f"of {names}")
    parser.add_argument(
        "--compare", nargs=2, choices=names, metavar="ROW", action="append",
        help="two rows for a paired test, as often as wanted, instead of the study's own pairs",
    )  # fmt: skip
    try:
        args = parse(parser)
        rows = [row for row in study.rows if row.name in args.rows]
        lines = run_study(rows, args.setting, args.seeds, args.workdir, args.targets, args.jobs)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(report(study, lines, args.compare or study.compare))
