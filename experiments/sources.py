"""Beyond the paper: how many source domains it takes.

The first k train: of the drawn networks and of the paper's sets in the order of their lists, of a folder's domains in
that of their names. There must be k beside the target; leave other rows out by --rows. A batch has 16 images of every
source, and so shrinks with them; with two, one is meta-train, and MetaBIN goes without the shuffle loss.
"""

from experiments.study import Study, main
from experiments.tables import Row

METHODS = {"bn": "BN", "metabin": "MetaBIN"}
COUNTS = {2: "2", 3: "3", 4: "4", 0: "all"}

STUDY = Study(
    name="sources",
    rows=tuple(
        Row(f"{name}, {words} sources", {"method": method}, sources=count)
        for count, words in COUNTS.items()
        for method, name in METHODS.items()
    ),
    compare=[(f"MetaBIN, {words} sources", f"BN, {words} sources") for words in COUNTS.values()],
)

if __name__ == "__main__":
    main(STUDY)
