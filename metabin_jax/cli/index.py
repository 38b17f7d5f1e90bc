"""`metabin index`: from pictures in any layout to a CSV manifest."""

import argparse
import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabin_jax.cli.options import check_output, command, option, output
from metabin_jax.runtime.errors import counted, few, printable

if TYPE_CHECKING:
    from metabin_jax.data.layouts import Indexed


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
    from metabin_jax.data import layouts
    from metabin_jax.runtime.files import whole

    target = check_output(options)
    found = layouts.index(Path(options.path).expanduser(), options.template or "")
    root = Path(options.path).expanduser().absolute()
    with whole(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        _write(found, root, file, target.absolute().parent)
    for line in _lines(found):
        print(printable(line))
    print(f"the manifest is in {target}")


def _write(indexed: "Indexed", root: Path, file: Any, folder: Path) -> None:
    """Writes the manifest to an open text file that lies in `folder`."""
    there = os.path.relpath(root, folder)
    if os.path.realpath(folder / there) != os.path.realpath(root):  # the system follows ".." from where a link leads
        there = os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
    writer = csv.writer(file)  # with "\n" alone as its end of a line, csv would not quote "\r"
    writer.writerow(("path", "pid", "camid", "domain", "split"))
    for path, row in indexed.rows.items():
        writer.writerow((Path(there, path).as_posix(), *row))


def _lines(indexed: "Indexed") -> Iterable[str]:
    """What was understood, with three examples, and what was left out."""
    rows = indexed.rows
    people = {(row.domain, row.pid) for row in rows.values()}
    cameras = {(row.domain, row.camid) for row in rows.values() if row.camid}
    domains = sorted({row.domain for row in rows.values()})
    unknown = sum(not row.camid for row in rows.values())
    identities = counted(len(people), "identity", "identities")
    yield f"{indexed.layout}: {counted(len(rows), 'image')} of {identities}, {counted(len(cameras), 'camera')}"
    if unknown:
        yield f"  images without a camera, which evaluation compares with all others: {unknown:,}"
    yield f"  {counted(len(domains), 'domain')}: {few(domains)}"
    paths = list(rows)
    for path in dict.fromkeys((paths[0], paths[len(paths) // 2], paths[-1])):
        row = rows[path]
        yield f"  {path}  ->  identity {row.pid}, camera {row.camid or '?'}, domain {row.domain}, split {row.split}"
    for reason, found in indexed.left_out.items():
        yield f"left out, {reason}: {len(found):,} ({few(found)})"
