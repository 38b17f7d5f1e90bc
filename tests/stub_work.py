"""What a study's worker processes run in tests in the place of training; here, so that they can import it."""

import os
import time
from pathlib import Path

from experiments.study import Job

FAILS = "bad"


def meet(workdir: Path) -> None:
    """Waits until two processes are here, however much later one of them starts."""
    (workdir / f"here-{os.getpid()}").touch()
    ends = time.monotonic() + 120
    while len(list(workdir.glob("here-*"))) < 2 and time.monotonic() < ends:
        time.sleep(0.01)


def leave_mark(job: Job) -> dict:
    """A line for the run, and one in WORKDIR/marks that says it was done; the row `bad` fails, `slow` takes long.

    `meets` waits for another process that does such a row.
    """
    if job.row.name == FAILS:
        raise ValueError("this row cannot work")
    if job.row.name == "meets":
        meet(job.workdir)
    time.sleep(30 if job.row.name == "slow" and not (job.workdir / "hurry").exists() else 0.05)
    with (job.workdir / "marks").open("a") as file:
        file.write(f"{job.row.name} {job.target} {job.seed} {os.getpid()}\n")
    return {"run": job.row.run, "target": job.target, "seed": job.seed, "R-1": 0.5, "mAP": 0.25, "queries": 5}
