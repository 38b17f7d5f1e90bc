"""Beyond the paper: beta as its text has it against a tenth of that, as in the authors' released code.

rho_change is what the inner step does: the mean of |rho' - rho|. Nothing else of the preset `official` is taken.
"""

from experiments.study import Study, main
from experiments.tables import Row
from metabin_jax.training.config import metabin


def _beta(preset: str) -> dict[str, float]:
    return {f"meta.{end}": metabin(preset).meta[end] for end in ("beta_low", "beta_high")}


STUDY = Study(
    name="beta",
    rows=(
        # Said though it is the default, as runs of other tables may be of a time when lines had no rho_change.
        Row("MetaBIN, beta of the text, 0.001 to 0.1", _beta("paper")),
        Row("MetaBIN, beta of the code, 0.0001 to 0.01", _beta("official")),
    ),
    compare=[("MetaBIN, beta of the text, 0.001 to 0.1", "MetaBIN, beta of the code, 0.0001 to 0.01")],
    field="rho_change",
)

if __name__ == "__main__":
    main(STUDY)
