"""A study trains and evaluates rows x targets x seeds, then prints a table beside the paper's numbers.

Every finished run adds a line to WORKDIR/results.jsonl and is never repeated. So the same command resumes a stopped
study, and tables share the rows that they have in common. All studies take the same options:

    --jobs=2                                          two runs at a time; the data is synthetic by default:
                                                      five camera networks train, the sixth is unseen
    --data=folder --path=DIR                          each domain of DIR is left out in turn
    --data=finetune --path=DIR --init=WEIGHTS         the same from pretrained weights
    --data=paper --init=mobilenetv2_1.4.pth           the sets of `metabin prepare`
    --config.meta.gamma=0.5 --workdir=DIR             changes a field of every row's config; such results
                                                      need a workdir of their own
"""

import fcntl
import json
import multiprocessing
import os
import re
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.command_line import command_line, in_one_sentence, parse
from experiments.settings import Setting
from experiments.tables import Line, Row, changed_fields, differences, mean_scores, table
from experiments.together import train_together
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import write_text
from metabin_jax.runtime.runlog import read_rows
from metabin_jax.training.train import train


@dataclass(frozen=True)
class Study:
    """Rows of a table and the pairs of them to test.

    name: as on the command line, after `experiments.`. about: for --help; its first line is one sentence. source: where
    the paper reports its numbers. field: another field of the lines that the table shows, such as "rho_change".
    """

    name: str
    about: str
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
        """Tells runs apart."""
        return self.row.run, self.target, self.seed

    @property
    def head(self) -> Line:
        """The fields that begin each line of this job."""
        line = {"run": self.row.run, "target": self.target, "seed": self.seed}
        return line | ({"config": dict(self.setting.overrides)} if self.setting.overrides else {})

    @property
    def folder(self) -> Path:
        name = re.sub(r"[^a-z0-9]+", "-", self.row.run.lower()).strip("-")
        return self.workdir / f"{self.target}-{name}-{self.seed}"

    def config(self) -> ConfigDict:
        """What is trained. Raises UserError if the setting has too few sources or overrides a field of the row."""
        for field in sorted(self.setting.overrides.keys() & self.row.overrides.keys()):
            raise UserError(
                f"the row {self.row.name!r} sets config.{field}: leave out --config.{field}, or the row by --rows"
            )
        config = self.setting.config(self.target, self.row.supervised, self.workdir, self.row.sources)
        config.update_from_flattened_dict(dict(self.row.overrides))
        config.seed = self.seed
        return config


Work = Callable[[Sequence[Job]], Iterable[Line]]  # a group of runs -> their lines


def run_job(job: Job) -> Line:
    """Trains and evaluates; the line has `mean_scores`."""
    if job.setting.smoke:
        jax.config.update("jax_disable_most_optimizations", True)  # half of the time to compile
    scores = list(train(job.config(), job.folder)["targets"].values())
    queries = sum(score["queries"] for score in scores)
    line = {**job.head, **mean_scores(scores), "queries": queries}
    inner = [row for row in read_rows(job.folder / "metrics.jsonl") if "inner/rho_change" in row]
    fields = ("rho_change", "clipped") if inner else ()
    return line | {field: statistics.mean(row[f"inner/{field}"] for row in inner) for field in fields}


def run_together(jobs: Sequence[Job], **settings: Any) -> list[Line]:
    """`run_job` of several jobs in one program. settings: of `train_together`, whose curves the lines have."""
    if jobs[0].setting.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    found = train_together([job.config() for job in jobs], **settings)
    lines = []
    for job, (result, curve) in zip(jobs, found, strict=True):
        rounded = {name: [float(f"{value:.4g}") for value in values] for name, values in curve.items()}
        lines.append(job.head | result | {"curve": rounded})
    return lines


def run_study(
    rows: Sequence[Row], setting: Setting, seeds: Sequence[int], workdir: Path, targets: Sequence[str] = (),
    jobs: int = 1, work: Callable[[Job], Line] = run_job, log_name: str = "results.jsonl",
) -> list[Line]:  # fmt: skip
    """`run_all` of every row, target and seed, seed by seed. targets: default: all of the setting."""
    everything = [
        Job(row, target, seed, setting, workdir)
        for seed in dict.fromkeys(seeds)
        for row in rows
        for target in dict.fromkeys(targets or setting.targets(row.supervised))
    ]
    return run_all([[job] for job in everything], setting, workdir, jobs, partial(map, work), log_name)


def run_all(
    groups: Sequence[Sequence[Job]],
    setting: Setting,
    workdir: Path,
    jobs: int,
    work: Work,
    log_name: str = "results.jsonl",
) -> list[Line]:
    """Does all runs, each once; returns the lines of the log in `workdir`, which grows as groups of runs finish.

    jobs: how many processes run at once. work: does a group of runs and returns their lines, each of which begins with
    `job.head`. Raises UserError if another study works in `workdir` or its results are of another setting, and whatever
    training raises; no further group is started after an error.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir):
        log = workdir / log_name
        lines = read(log)
        done = {(line["run"], line["target"], line["seed"]) for line in lines}
        left = ([job for job in group if job.key not in done] for group in groups)
        todo = [group for group in left if group]
        for job in (flat := [job for group in todo for job in group]):
            job.config()  # raises before the first run is started
        setting.keep(workdir, lines)
        for target in dict.fromkeys(job.target for job in flat if job.row.supervised):
            setting.halve(target, workdir)
        jobs = min(jobs, len(todo))
        for found in _in_processes(todo, jobs, work) if jobs > 1 else map(work, todo):
            lines += found
            write_text(log, "".join(json.dumps(each) + "\n" for each in lines))  # whole or not at all
    return lines


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    with (workdir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another study runs in {workdir}: wait for it, or choose another --workdir") from None
        yield


def _in_processes(todo: Sequence[Sequence[Job]], jobs: int, work: Work) -> Iterator[Iterable[Line]]:
    """Yields lines as groups finish. An error is raised once the runs under way have finished; no other is started."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that uses JAX may hang
    numbers = spawn.SimpleQueue()
    for number in range(jobs):
        numbers.put(number)
    with ProcessPoolExecutor(jobs, spawn, initializer=_start_worker, initargs=(numbers, jobs)) as pool:
        futures = [pool.submit(_listed, work, group) for group in todo]
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
        except BaseException:  # Ctrl-C: do not wait for a worker that is still starting and needs `numbers`
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if errors:
            raise errors[0]


def _listed(work: Work, group: Sequence[Job]) -> list[Line]:
    return list(work(group))


def _start_worker(numbers: SimpleQueue, jobs: int) -> None:
    """Binds a worker to its share of the cores and to its study: a worker left over would train beside the next."""
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
    """The lines of a results.jsonl; none without such a file. Raises UserError for a line that is not JSON."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise UserError(f"{log} has a line that is not JSON ({error}): remove it, and its run is repeated") from None


def report(study: Study, lines: Sequence[Line], compare: Sequence[Sequence[str]]) -> str:
    """A table of unseen targets, one of supervised targets, paired tests, and the source of the paper's numbers."""
    blocks = [[row for row in study.rows if row.supervised is supervised] for supervised in (False, True)]
    parts = [table(block, lines, study.field) for block in blocks if block]
    parts.append(f"R-1 / mAP in %, mean ± standard deviation over seeds. {changed_fields(lines)}".rstrip())
    rows = {row.name: row for row in study.rows}
    tests = differences(lines, [(rows[first], rows[second]) for first, second in compare])
    if tests:
        parts += [tests, "In points; p: two-sided paired t test over seeds, not corrected for the number of tests."]
    if study.source:
        parts.append(f"paper (reported): {study.source}, with its net on its data; not measured here.")
    return "\n\n".join(parts)


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """The command line of a study. arguments: default: those of the process."""
    names = [row.name for row in study.rows]
    parser = command_line(study.name, f"{study.about.strip()}\n\n{__doc__}")
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", default=names, help=f"of {names}")
    parser.add_argument(
        "--compare", nargs=2, choices=names, metavar="ROW", action="append",
        help="two rows for a paired test, instead of the study's own pairs; can be repeated",
    )  # fmt: skip
    with in_one_sentence(parser):
        args = parse(parser, arguments)
        rows = [row for row in study.rows if row.name in args.rows]
        lines = run_study(rows, args.setting, args.seeds, args.workdir, args.targets, args.jobs)
    print(report(study, lines, args.compare or study.compare))
