"""Beyond the paper: other methods of domain generalisation, by themselves and within MetaBIN.

MixStyle (Zhou et al., ICLR 2021) mixes the styles of images in training, see metabin_jax/models/mixstyle.py. The net of
--smoke is too small to have a place for it: there the runs show only that the method can be trained.

BAU (Cho et al., NeurIPS 2024) balances alignment and uniformity of embeddings, see metabin_jax/bau.py, which also says
what of it is not here. Its base update sees two views of every image.
"""

from experiments.study import Study, main
from experiments.tables import Row

STUDY = Study(
    name="others",
    rows=(
        Row("BN", {"method": "bn"}),
        Row("MixStyle", {"method": "mixstyle"}),
        Row("BAU's losses", {"method": "bau"}),
        Row("MetaBIN", {}),
        Row("MetaBIN + MixStyle", {"method": "metabin_mixstyle"}),
        Row("MetaBIN + BAU's losses", {"method": "metabin_bau"}),
    ),
    compare=[
        ("MixStyle", "BN"),
        ("BAU's losses", "BN"),
        ("MetaBIN + MixStyle", "MetaBIN"),
        ("MetaBIN + BAU's losses", "MetaBIN"),
    ],
)

if __name__ == "__main__":
    main(STUDY)
