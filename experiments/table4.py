"""Table 4: the norm layers on unseen domains and, supervised, on other people of the training domain.

The paper's supervised set is Market-1501. On other data half of the target's people train (every other identity number)
and the rest are tested.
"""

from experiments.study import Study, main
from experiments.tables import Row

# Method -> name, R-1 and mAP on unseen domains, R-1 and mAP supervised on Market-1501.
LAYERS = {
    "bn": ("BN", (50.9, 59.5), (87.2, 67.9)),
    "in": ("IN", (54.9, 63.3), (71.9, 46.1)),
    "dualnorm": ("DualNorm", (57.6, 61.8), (82.6, 57.2)),
    "half": ("BN+IN half", (56.5, 65.3), (79.5, 53.9)),
    "bin": ("BIN", (54.8, 63.1), (87.5, 67.8)),
    "metabin": ("MetaBIN", (64.7, 72.3), (87.9, 68.5)),
}

STUDY = Study(
    name="table4",
    about=__doc__,
    rows=(
        *(Row(name, {"method": method}, unseen) for method, (name, unseen, _) in LAYERS.items()),
        *(Row(f"{name}, supervised", {"method": method}, own, True) for method, (name, _, own) in LAYERS.items()),
    ),
    compare=[
        (first + suffix, second + suffix)
        for suffix in ("", ", supervised")
        for first, second in (
            *((name, "BN") for name, *_ in LAYERS.values() if name != "BN"),
            ("MetaBIN", "DualNorm"),
            ("MetaBIN", "BIN"),
        )
    ],
    source="Choi et al., CVPR 2021, Table 4",
)

if __name__ == "__main__":
    main(STUDY)
