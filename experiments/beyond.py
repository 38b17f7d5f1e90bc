"""Studies beyond the paper: each trains rows of its own and prints their table.

    python -m experiments.beyond others --jobs=2

`--help` behind the name of a study shows its options and rows.
"""

import argparse
import sys
from collections.abc import Mapping

from experiments import study
from experiments.study import Study
from experiments.tables import Row
from metabin_jax.training.config import metabin

GAMMAS = (0.1, 0.5, 2.0, 6.0, 20.0)
COUNTS = {2: "2", 3: "3", 4: "4", 0: "all"}  # 0 trains on all sources


def beta_of(preset: str) -> Mapping[str, float]:
    """The cycle of beta in a preset, and nothing else of the preset."""
    return {f"meta.{end}": metabin(preset).meta[end] for end in ("beta_low", "beta_high")}


ORDER = Study(
    name="beyond order",
    about="The exact meta-gradient, which passes through the inner step, against the paper's first-order one.",
    rows=(
        Row("MetaBIN, first order", {}),
        Row("MetaBIN, exact", {"meta.first_order": False}),
    ),
    compare=[("MetaBIN, exact", "MetaBIN, first order")],
)
BETA = Study(
    name="beyond beta",
    about="""The paper's beta against the authors' released code, which uses a tenth of it.

The column rho_change shows what the inner step does: the mean of |rho' - rho|.""",
    rows=(
        # Written out although it is the default: older lines of the default row lack rho_change.
        Row("MetaBIN, beta of the text, 0.001 to 0.1", beta_of("paper")),
        Row("MetaBIN, beta of the code, 0.0001 to 0.01", beta_of("official")),
    ),
    compare=[("MetaBIN, beta of the text, 0.001 to 0.1", "MetaBIN, beta of the code, 0.0001 to 0.01")],
    field="rho_change",
)
CLIP = Study(
    name="beyond clip",
    about="""What the inner step's clip of rho does to the meta-gradient.

rho starts on the edge of the box [0, 1]. A plain clip stops the meta-gradient of every channel that the inner step
pushes outwards; straight through, it passes (`learner.clip_straight_through`). The column clipped is the share of
such channels, averaged over the logged steps.""",
    rows=(
        Row("MetaBIN, straight through", {}),
        Row("MetaBIN, plain clip", {"meta.clip": "plain"}),
    ),
    compare=[("MetaBIN, straight through", "MetaBIN, plain clip")],
    field="clipped",
)
GAMMA = Study(
    name="beyond gamma",
    about="""Gamma, the rate of rho's meta-update, beside BIN.

The paper sets gamma to 0.1 for its 184,900 steps. In a short training, gamma decides how far rho gets from 1 (BN),
where it starts.""",
    rows=(
        *(Row(f"MetaBIN, gamma {gamma:g}", {"meta.gamma": gamma}) for gamma in GAMMAS),
        Row("BIN", {"method": "bin"}),
    ),
    compare=[(f"MetaBIN, gamma {gamma:g}", "BIN") for gamma in GAMMAS],
)
SOURCES = Study(
    name="beyond sources",
    about="""The number of source domains that BN and MetaBIN need.

A row trains on the first k sources: in the order of the list for synthetic domains and the paper's sets, by name in a
folder. Leave rows with too many sources out by --rows. A batch has 16 images of every source, so fewer sources make a
smaller batch. With two sources one is meta-train, and MetaBIN trains without the shuffle loss.""",
    rows=tuple(
        Row(f"{name}, {words} sources", {"method": method}, sources=count)
        for count, words in COUNTS.items()
        for method, name in (("bn", "BN"), ("metabin", "MetaBIN"))
    ),
    compare=[(f"MetaBIN, {words} sources", f"BN, {words} sources") for words in COUNTS.values()],
)
OTHERS = Study(
    name="beyond others",
    about="""MixStyle and BAU's losses, alone and within MetaBIN.

MixStyle (Zhou et al., ICLR 2021) mixes the styles of images in training, see metabin_jax/models/mixstyle.py. The net of
--smoke is too small for MixStyle: its smoke runs only show that the method can be trained. BAU (Cho et al., NeurIPS
2024) balances alignment and uniformity of embeddings; metabin_jax/baselines/bau.py lists the parts that are left out.
Its base update takes two views of every image.""",
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
STUDIES = {each.name.split()[-1]: each for each in (ORDER, BETA, CLIP, GAMMA, SOURCES, OTHERS)}


def main() -> None:
    listed = "".join(f"  {name:9}{each.about.partition(chr(10))[0]}\n" for name, each in STUDIES.items())
    parser = argparse.ArgumentParser(
        prog="experiments.beyond",
        description=__doc__,
        epilog=f"studies:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", choices=STUDIES, metavar="STUDY", help="one of the studies below; its options follow")
    chosen = parser.parse_args(sys.argv[1:2]).study
    study.main(STUDIES[chosen], sys.argv[2:])


if __name__ == "__main__":
    main()
