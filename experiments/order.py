"""Beyond the paper: the exact meta-gradient, through the inner step, against the paper's first-order one."""

from experiments.study import Study, main
from experiments.tables import Row

STUDY = Study(
    name="order",
    rows=(
        Row("MetaBIN, first order", {}),
        Row("MetaBIN, exact", {"meta.first_order": False}),
    ),
    compare=[("MetaBIN, exact", "MetaBIN, first order")],
)

if __name__ == "__main__":
    main(STUDY)
