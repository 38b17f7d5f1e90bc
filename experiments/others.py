"""Beyond the paper: another method of domain generalisation, by itself and within MetaBIN.

MixStyle (Zhou et al., ICLR 2021) mixes the styles of images in training, see metabin_jax/models/mixstyle.py. The net of
--smoke is too small to have a place for it: there the runs show only that the method can be trained.
"""

from experiments.study import Study, main
from experiments.tables import Row

STUDY = Study(
    name="others",
    rows=(
        Row("BN", {"method": "bn"}),
        Row("MixStyle", {"method": "mixstyle"}),
        Row("MetaBIN", {}),
        Row("MetaBIN + MixStyle", {"method": "metabin_mixstyle"}),
    ),
    compare=("MetaBIN", "MixStyle"),
)

if __name__ == "__main__":
    main(STUDY)
