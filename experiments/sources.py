"""Beyond the paper: how many source domains it takes.

The first k train: of the drawn networks and of the paper's sets in the order of their lists, of a folder's domains in
that of their names. There must be k beside the target; leave other rows out by --rows. A batch has 16 images of every
source, and so shrinks with them; with two, one is meta-train, and MetaBIN goes without the shuffle loss.
"""

from experiments.study import Study, main
from experiments.tables import Row

METHODS = {"bn": "BN", "metabin": "MetaBIN"}

STUDY = Study(
    name="sources",
    rows=tuple(
        Row(f"{name}, {count or 'all'} sources", {"method": method}, sources=count)
        for count in (2, 3, 4, 0)
        for method, name in METHODS.items()
    ),
    compare=("MetaBIN, 2 sources", "BN, 2 sources"),
)

if __name__ == "__main__":
    main(STUDY)
