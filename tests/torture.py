"""Kills a small training at random moments, again and again: it must end with the bits of one that nobody disturbed.

    python tests/torture.py [--kills=60] [--terms=20] [--interrupts=20] [--full=20]

Kills come by SIGKILL, SIGTERM and SIGINT, from the start of the process to its end. --full: limits the size of files,
which fails like a full disk. Ends with status 1 and the first difference. `make torture` runs it.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny_run import differences, draw_folder, pixel_nets, state_of, tiny_config, without_rate

RUN = """
import resource, signal, sys, time
from pathlib import Path
from metabin_jax.runtime.errors import Stopped, UserError
from metabin_jax.training import train
from tiny_run import pixel_nets, tiny_config

if limit := int(sys.argv[3]):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is then an error, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
read_batches = train.read_batches
def slow(*arguments):
    for batch in read_batches(*arguments):
        time.sleep(0.05)
        yield batch
train.read_batches = slow
config = tiny_config(Path(sys.argv[1]))
config.checkpoint_minutes = 0.002
with pixel_nets():
    try:
        train.train(config, sys.argv[2])
    except Stopped as stopped:
        sys.exit(stopped.status)
    except (UserError, OSError) as error:
        sys.exit(f"one sentence: {error}")
"""


def start(folder: Path, workdir: Path, limit: int = 0) -> subprocess.Popen:
    """limit: the most bytes that a file may have, if it is not 0."""
    command = [sys.executable, "-c", RUN, str(folder), str(workdir), str(limit)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 60), ("terms", 20), ("interrupts", 20), ("full", 20)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    with tempfile.TemporaryDirectory() as root:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{root}/xla"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        folder = draw_folder(Path(root) / "data")
        began = time.monotonic()
        assert start(folder, Path(root) / "straight").wait() == 0
        began = time.monotonic()
        assert start(folder, Path(root) / "again").wait() == 0
        whole = time.monotonic() - began
        signals = {signal.SIGKILL: args.kills, signal.SIGTERM: args.terms, signal.SIGINT: args.interrupts}
        todo = [number for number, count in signals.items() for _ in range(count)] + [None] * args.full
        rng.shuffle(todo)
        number, workdir = 0, Path(root) / "run0"
        for done, kind in enumerate(todo, start=1):
            process = start(folder, workdir, 0 if kind else rng.choice([300, 3_000, 20_000]))
            if kind:
                try:
                    process.wait(whole * rng.uniform(0.2, 1.0))
                except subprocess.TimeoutExpired:
                    process.send_signal(kind)
            words = process.communicate()[1]
            # Orbax's threads print what they meet on a full disk, and Python may be starting when SIGINT comes.
            if not kind and process.returncode and "one sentence: " not in words:
                sys.exit(f"full disk: {words}")
            if kind and kind != signal.SIGINT and "Traceback" in words:
                sys.exit(f"{kind.name}: {words}")
            if process.returncode == 0:
                check(folder, workdir, Path(root) / "straight")
                number += 1
                workdir = Path(root) / f"run{number}"
            print(
                f"{done} of {len(todo)}: {kind.name if kind else 'full disk'}, status {process.returncode}", flush=True
            )
        assert start(folder, workdir).wait() == 0
        check(folder, workdir, Path(root) / "straight")
        print(f"{number + 1} runs ended with equal bits after {len(todo)} disturbances")


def check(folder: Path, workdir: Path, other: Path) -> None:
    config = tiny_config(folder)
    with pixel_nets():
        different = differences(state_of(config, workdir), state_of(config, other))
    if different or without_rate(workdir) != without_rate(other):
        sys.exit(f"{workdir} differs: {different or 'metrics.jsonl'}")


if __name__ == "__main__":
    main()
