"""Table 2: the losses of the meta-train and the meta-test step, and a fixed beta against the cyclic one."""

from experiments.study import Study, main
from experiments.tables import FIXED_BETA, Row


def _losses(*meta_train: str, meta_test: tuple[str, ...] = ("triplet",)) -> dict[str, tuple[str, ...]]:
    changed = {"meta.test_losses": meta_test} if meta_test != ("triplet",) else {}
    return {"meta.train_losses": meta_train, **changed}


STUDY = Study(
    name="table2",
    about=__doc__,
    rows=(
        Row("BN", {"method": "bn"}, (50.9, 59.5)),
        Row("MetaBIN: Lce, fixed", _losses("cross_entropy", meta_test=("cross_entropy",)) | FIXED_BETA, (60.6, 69.4)),
        Row(
            "MetaBIN: Lce + Ltr, fixed",
            _losses("triplet", "cross_entropy", meta_test=("triplet", "cross_entropy")) | FIXED_BETA,
            (62.0, 69.9),
        ),
        Row("MetaBIN: Ltr, fixed", _losses("triplet") | FIXED_BETA, (62.8, 70.8)),
        Row("MetaBIN: Ltr + Lscat, fixed", _losses("scatter", "triplet") | FIXED_BETA, (63.0, 71.0)),
        Row("MetaBIN: Ltr + Lscat + Lshuf, fixed", FIXED_BETA, (63.5, 71.3)),
        Row("MetaBIN: Ltr + Lscat + Lshuf, cyclic", {}, (64.7, 72.3)),
    ),
    compare=[
        ("MetaBIN: Lce, fixed", "BN"),
        ("MetaBIN: Ltr + Lscat + Lshuf, cyclic", "BN"),
        ("MetaBIN: Ltr + Lscat + Lshuf, fixed", "MetaBIN: Lce, fixed"),
        ("MetaBIN: Lce + Ltr, fixed", "MetaBIN: Lce, fixed"),
        ("MetaBIN: Ltr, fixed", "MetaBIN: Lce, fixed"),
        ("MetaBIN: Ltr + Lscat, fixed", "MetaBIN: Ltr, fixed"),
        ("MetaBIN: Ltr + Lscat + Lshuf, fixed", "MetaBIN: Ltr + Lscat, fixed"),
        ("MetaBIN: Ltr + Lscat + Lshuf, cyclic", "MetaBIN: Ltr + Lscat + Lshuf, fixed"),
    ],
    source="Choi et al., CVPR 2021, Table 2",
)

if __name__ == "__main__":
    main(STUDY)
