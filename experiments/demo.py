"""Trains BN and MetaBIN on five synthetic camera networks and evaluates both on a sixth, in about two minutes.

    python -m experiments.demo            (what `make demo` runs)

One seed only demonstrates. To measure, run several: `python -m experiments.table4 --rows BN MetaBIN --seeds 0 1 2`.
"""

import argparse
from pathlib import Path

from experiments.command_line import in_one_sentence
from experiments.settings import Setting
from experiments.study import run_study
from experiments.tables import Row, table
from metabin_jax.data import synthetic

WORKDIR = Path("runs/demo")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    target = synthetic.DOMAIN_NAMES[-1]
    rows = [Row("BN", {"method": "bn"}), Row("MetaBIN", {"method": "metabin"})]
    with in_one_sentence(parser):
        lines = run_study(rows, Setting("synthetic"), [0], WORKDIR)
    print(f"\nR-1 / mAP (%) on {target!r}, a camera network that neither model was trained on:\n")
    print(f"{table(rows, lines)}\n")
    print("One short training each: another seed or machine moves R-1 by ten points and more. See docs/results.md.")
    print(f"Metrics (metrics.jsonl, tensorboard/), checkpoints and configs are in {WORKDIR.resolve()}/*/.")


if __name__ == "__main__":
    main()
