"""`metabin doctor`: what is wrong with images, with their labels, or with what is installed. Imports late."""

import argparse
import collections

from metabin_jax.cli.options import MODEL_OF_IMAGES, SIZE, check_table, command, option, output
from metabin_jax.runtime.errors import UserError, counted, printable


@command(
    option("path", metavar="PATH", nargs="?", help="an unpacked data set, a folder of domains, or a CSV manifest"),
    MODEL_OF_IMAGES,
    SIZE,
    *output("labels that are likely wrong: a .csv, .json, .parquet or .html file"),
)
def doctor(options: argparse.Namespace) -> None:
    """Say what a data set, a folder or a CSV manifest of images holds, and what is wrong with it.

    Prints which set it is and its counts beside the published ones, what each split holds, the queries without a valid
    match and why, and broken and duplicate images. Without PATH, prints the versions of what metabin computes with,
    and a known fault in them.

    With --output, PATH is what metabin embed takes or wrote, and --model embeds images. The file lists images whose
    nearest neighbours are of one other identity, copies under two identities, and identities that look like two people.

    examples:
      metabin doctor
      metabin doctor pictures
      metabin doctor pictures --model=runs/mine --output=suspects.html
    """
    from metabin_jax.report.doctor import examine, installation

    if options.output:
        return _list_suspects(options)
    for line in examine(options.path) if options.path else installation():
        print(printable(line))


def _list_suspects(options: argparse.Namespace) -> None:
    from metabin_jax.cli.retrieval import load_features, load_model
    from metabin_jax.report import search_page
    from metabin_jax.retrieval import tables
    from metabin_jax.retrieval.suspects import WORDS, suspects

    if not options.path:
        raise UserError("--output needs the images, a feature file or a gallery: metabin doctor PATH --output=FILE")
    target = check_table(options, pages=True)
    assert target
    features, _ = load_features(options.path, load_model(options, options.path))
    found = suspects(features)

    labels = features.labels
    if target.suffix.lower() == search_page.SUFFIX:
        lead = "Each image whose label is doubtful, then the image that says so. The net only suspects: look at them."
        lists = []
        for suspect in found:
            (path, own, *_), other = labels(suspect.row), labels(suspect.other)
            text = f"{path}: {WORDS[suspect.reason].format(own=own, other=other[1])}"
            lists.append(search_page.List(text, path, [(path, 1, suspect.similarity, *other, "")]))
        search_page.write(target, lists, f"Doubtful labels: {len(found):,}", [lead])
    else:
        header = ("reason", "path", "pid", "camid", "domain", "other_path", "other_pid", "similarity")
        rows_of = [(s.reason, *labels(s.row), *labels(s.other)[:2], s.similarity) for s in found]
        tables.write(target, header, rows_of)
    counts = collections.Counter(suspect.reason for suspect in found)
    listed = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    print(f"{counted(len(found), 'doubtful label')} in {target}" + (f": {listed}" if listed else ""))
