"""Beyond the paper: gamma, the rate of rho's meta-update, which the paper sets to 0.1 for its 184,900 steps.

What a short training takes for it decides how far rho gets away from BN, where it starts.
"""

from experiments.study import Study, main
from experiments.tables import Row

GAMMAS = (0.1, 0.5, 2.0, 6.0, 20.0)

STUDY = Study(
    name="gamma",
    rows=(
        *(Row(f"MetaBIN, gamma {gamma:g}", {"meta.gamma": gamma}) for gamma in GAMMAS),
        Row("BIN", {"method": "bin"}),
    ),
    compare=[(f"MetaBIN, gamma {gamma:g}", "BIN") for gamma in GAMMAS],
)

if __name__ == "__main__":
    main(STUDY)
