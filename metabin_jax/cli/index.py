"""`metabin index`: from pictures in any layout to a CSV manifest."""

import argparse

from metabin_jax.cli.options import check_output, command, option, output
from metabin_jax.runtime.errors import printable


@command(
    option("path", metavar="DIR", help="a folder of pictures"),
    option("--template", metavar="TEXT", help="the parts of a path, as in '{domain}/cam{camid}/{pid}_{}.jpg'"),
    *output("the manifest (default: pictures.csv)", default="pictures.csv"),
)
def index(options: argparse.Namespace) -> None:
    """Make a CSV manifest of a folder of pictures, whatever its layout, for the other commands.

    layouts:
      Market-1501 names (0002_c1s1_000451.jpg), MARS, MSMT17, VeRi-776, VehicleID, VERI-Wild, metadata.csv of
      wildlife-datasets, folders of cameras and people (cam01/person07), one folder per identity
    Any other layout by --template. Prints what it understood, and what it left out with the reason.

    examples:
      metabin index pictures --output=pictures.csv
      metabin index pictures --template='{domain}/cam{camid}/{pid}_{}.jpg'
      metabin train --config=folder --workdir=runs/mine --config.data.path=pictures.csv
    """
    from pathlib import Path

    from metabin_jax.data import layouts
    from metabin_jax.runtime.files import whole

    target = check_output(options)
    found = layouts.index(Path(options.path).expanduser(), options.template or "")
    root = Path(options.path).expanduser().absolute()
    with whole(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        layouts.write(found, root, file, target.absolute().parent)
    for line in layouts.lines(found):
        print(printable(line))
    print(f"the manifest is in {target}")
