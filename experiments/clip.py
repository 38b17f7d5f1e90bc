"""Beyond the paper: what the inner step's clip of rho does to the meta-gradient.

rho starts on the edge of the box. A plain clip takes the meta-gradient from every channel that the inner step pushes
outwards; straight through, it passes (`algorithm.clip_straight_through`). clipped is the share of such channels, the
mean over the logged steps.
"""

from experiments.study import Study, main
from experiments.tables import Row

STUDY = Study(
    name="clip",
    rows=(
        Row("MetaBIN, straight through", {}),
        Row("MetaBIN, plain clip", {"meta.clip": "plain"}),
    ),
    compare=[("MetaBIN, straight through", "MetaBIN, plain clip")],
    field="clipped",
)

if __name__ == "__main__":
    main(STUDY)
