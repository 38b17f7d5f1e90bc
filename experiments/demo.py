"""The two-minute proof: BN and MetaBIN train on five drawn camera networks and are evaluated on a sixth.

    python -m experiments.demo            (what `make demo` runs)

One seed: a demonstration, not a measurement; README.md has more seeds and the command.
"""

from pathlib import Path

from experiments.settings import Setting
from experiments.study import run_study
from experiments.tables import Row, table
from metabin_jax.data import synthetic

WORKDIR = Path("runs/demo")


def main() -> None:
    target = synthetic.DOMAIN_NAMES[-1]
    rows = [Row("BN", {"method": "bn"}), Row("MetaBIN", {"method": "metabin"})]
    lines = run_study(rows, Setting("synthetic"), [0], WORKDIR)
    print(f"\nR-1 / mAP (%) on {target!r}, a camera network that neither model saw:\n\n{table(rows, lines)}\n")
    print(f"Metrics (metrics.jsonl, tensorboard/), checkpoints and configs lie in {WORKDIR.resolve()}/*/.")


if __name__ == "__main__":
    main()
