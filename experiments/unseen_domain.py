"""Table 4 in small: the norm layers with and without rho, compared on domains they never saw.

python -m experiments.unseen_domain --workdir=runs/synthetic
python -m experiments.unseen_domain --data=folder --path=DIR --workdir=runs/folder
python -m experiments.unseen_domain --data=finetune --path=DIR --init=WEIGHTS --workdir=runs/finetune
"""

from experiments.study import Study, main
from experiments.tables import Row

STUDY = Study(
    name="unseen_domain",
    rows=tuple(Row(method, {"method": method}) for method in ("bn", "in", "bin", "metabin")),
    compare=("metabin", "bin"),
)

if __name__ == "__main__":
    main(STUDY)
