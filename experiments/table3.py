"""Table 3: MLDG on BN and BIN, MetaBIN with BIN's shared affine, and MetaBIN without separate episodes."""

from experiments.study import Study, main
from experiments.tables import FIXED_BETA, Row

CROSS_ENTROPY = {"loss.base": ("cross_entropy",)}

STUDY = Study(
    name="table3",
    about=__doc__,
    rows=(
        Row("BN, Lce", {"method": "bn"} | CROSS_ENTROPY, (50.2, 59.6)),
        Row("BN, Lce, MLDG fixed", {"method": "bn_mldg"} | CROSS_ENTROPY | FIXED_BETA, (50.5, 59.2)),
        Row("BN, Lce, MLDG cyclic", {"method": "bn_mldg"} | CROSS_ENTROPY, (52.3, 60.9)),
        Row("BN, Lce + Ltr", {"method": "bn"}, (50.9, 59.5)),
        Row("BN, Lce + Ltr, MLDG fixed", {"method": "bn_mldg"} | FIXED_BETA, (52.2, 61.2)),
        Row("BN, Lce + Ltr, MLDG cyclic", {"method": "bn_mldg"}, (53.6, 61.8)),
        Row("BIN, Lce + Ltr", {"method": "bin"}, (54.8, 63.1)),
        Row("BIN, Lce + Ltr, MLDG fixed", {"method": "bin_mldg"} | FIXED_BETA, (57.9, 65.7)),
        Row("BIN, Lce + Ltr, MLDG cyclic", {"method": "bin_mldg"}, (58.4, 66.3)),
        Row("MetaBIN, BIN's layer", {"method": "metabin_shared"}, (60.6, 68.8)),
        Row("MetaBIN, without episode separation", {"method": "metabin_joint"}, (60.9, 69.1)),
        Row("MetaBIN", {"method": "metabin"}, (64.7, 72.3)),
    ),
    compare=[
        *(
            pair
            for base in ("BN, Lce", "BN, Lce + Ltr", "BIN, Lce + Ltr")
            for pair in ((f"{base}, MLDG fixed", base), (f"{base}, MLDG cyclic", f"{base}, MLDG fixed"))
        ),
        ("MetaBIN", "BIN, Lce + Ltr"),
        ("MetaBIN", "BIN, Lce + Ltr, MLDG cyclic"),
        ("MetaBIN", "MetaBIN, BIN's layer"),
        ("MetaBIN", "MetaBIN, without episode separation"),
    ],
    source="Choi et al., CVPR 2021, Table 3",
)

if __name__ == "__main__":
    main(STUDY)
