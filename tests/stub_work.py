"""What a study's worker processes run in tests in the place of training; here, so that they can import it."""

import os
import time

from experiments.study import Job

FAILS = "bad"


def leave_mark(job: Job) -> dict:
    """A line for the run, and one in WORKDIR/marks that says it was done; the row `bad` fails, `slow` takes long."""
    if job.row.name == FAILS:
        raise ValueError("this row cannot work")
    time.sleep(30 if job.row.name == "slow" and not (job.workdir / "hurry").exists() else 0.05)
    with (job.workdir / "marks").open("a") as file:
        file.write(f"{job.row.name} {job.target} {job.seed} {os.getpid()}\n")
    return {"run": job.row.run, "target": job.target, "seed": job.seed, "R-1": 0.5, "mAP": 0.25, "queries": 5}
