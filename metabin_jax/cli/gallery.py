"""`metabin gallery ACTION`: a gallery that grows. Imports late, so that --help is quick."""

import argparse
import collections
import sys

from metabin_jax.cli.options import FEATURES, MODEL_OF_IMAGES, SIZE, check_table, command, option, output
from metabin_jax.cli.retrieval import left_out, threshold_option
from metabin_jax.runtime.errors import UserError, counted, few, printable

FILE = option("file", metavar="FILE.db", help="the gallery")
TABLE = "a .csv, .json or .parquet file, instead of printing"


@command(FILE, option("path", metavar="IMAGES", help=FEATURES), MODEL_OF_IMAGES, SIZE)
def add(options: argparse.Namespace) -> int:
    """Add images, or what a file of features holds, to a gallery, or make one.

    Images that are there and whose files have not changed are skipped. A changed file is embedded again. Labels that
    the names or a CSV give are set where the gallery has none; metabin gallery label changes others. The same command
    resumes a stopped one, and several may run at a time.

    examples:
      metabin gallery add people.db pictures --model=runs/mine
      metabin gallery add people.db gallery.npz
    """
    from metabin_jax.cli.retrieval import is_images, load_features, load_model
    from metabin_jax.retrieval.encoder import embed_batchwise
    from metabin_jax.retrieval.gallery import UNKNOWN, Gallery, stamp
    from metabin_jax.retrieval.listing import list_images
    from metabin_jax.runtime.files import check_writable

    check_writable(options.file)
    run = load_model(options, options.path)
    if run is None or not is_images(options.path):
        features, _ = load_features(options.path, run)
        with Gallery(options.file, features.made_by) as gallery:
            count = gallery.add([features], {path: stamp(path, options.path) for path in features.path.tolist()})
            print(f"{counted(count, 'image')} added: {options.file} has {len(gallery):,}")
        return 0
    images = list_images(options.path)
    with Gallery(options.file, run.made_by) as gallery:
        before = gallery.stamps()
        stamps = {image.path: stamp(image.path) for image in images}
        todo = [i for i in images if stamps[i.path] == UNKNOWN or before.get(i.path) != stamps[i.path]]
        broken: list[str] = []
        count = gallery.add(embed_batchwise(run, todo, broken), stamps) if todo else 0
        labelled = gallery.label_unknown(images)
        total, names = len(gallery), gallery.identities()
    skipped = f"{len(images) - len(todo):,} unchanged skipped" + (
        f", {labelled:,} of them labelled" if labelled else ""
    )
    print(f"{counted(count, 'image')} added, {skipped}: {options.file} has {total:,}")
    if others := [image.path for image in images if image.pid and names.get(image.path, image.pid) != image.pid]:
        named = printable(few(others))
        print(f"{counted(len(others), 'image')} kept another identity, which metabin gallery label changes: {named}")
    return left_out(broken, len(images))


@command(FILE, option("path", nargs="+", metavar="PATH", help="an image, or a folder with all that is below"))
def remove(options: argparse.Namespace) -> None:
    """Take images out of a gallery; their files stay.

    example:
      metabin gallery remove people.db pictures/old
    """
    from metabin_jax.retrieval.gallery import Gallery

    with Gallery(options.file) as gallery:
        count = gallery.remove(options.path)
        total = len(gallery)
    if not count:
        raise UserError(f"{options.file} has none of {few(options.path)}: metabin gallery list shows the paths")
    print(f"{counted(count, 'image')} removed: {options.file} has {total:,}")


@command(FILE, option("path", metavar="CSV", help="with the columns path and pid, and perhaps camid and domain"))
def label(options: argparse.Namespace) -> None:
    """Set the identities, cameras and domains of images in a gallery. An empty cell changes nothing.

    example:
      metabin gallery label people.db names.csv
    """
    from metabin_jax.retrieval.gallery import Gallery
    from metabin_jax.retrieval.listing import list_images

    images = list_images(options.path)
    with Gallery(options.file) as gallery:
        there = gallery.stamps()
        if unknown := [image.path for image in images if image.path not in there]:
            raise UserError(f"{options.file} lacks {counted(len(unknown), 'image')}: {few(unknown)}; add them first")
        print(f"{counted(gallery.label(images), 'image')} labelled in {options.file}")


@command(FILE, *output(TABLE))
def list_(options: argparse.Namespace) -> None:
    """Say what a gallery holds: counts, or with --output every image.

    example:
      metabin gallery list people.db --output=people.csv
    """
    from metabin_jax.retrieval import tables
    from metabin_jax.retrieval.features import describe
    from metabin_jax.retrieval.gallery import Gallery

    target = check_table(options)
    with Gallery(options.file) as gallery:
        found = gallery.features()
    labels = [found.labels(row) for row in range(len(found))]
    if target:
        tables.write(target, ("path", "pid", "camid", "domain"), labels)
    print(printable(f"{len(found):,} images, by {describe(found.made_by)}"))
    identities = collections.Counter((domain, pid) for _, pid, _, domain in labels if pid)
    domains = collections.Counter(domain for domain, _ in identities)
    for domain, count in sorted(domains.items()):
        images = sum(number for (own, _), number in identities.items() if own == domain)
        print(printable(f"{domain or '(no domain)'}: {count:,} identities, {images:,} images"))
    print(f"without an identity: {len(found) - identities.total():,} images")


@command(
    FILE,
    option("query", metavar="IMAGES", help=FEATURES),
    option("--model", metavar="RUN|FILE", help="as in metabin embed; needed for images"),
    SIZE,
    threshold_option(required=True),
    *output(TABLE),
)
def identify(options: argparse.Namespace) -> int:
    """Say who is on each picture, or "unknown", with the runner-up.

    The similarity to an identity is that to its most similar image. Above the threshold the picture is of this
    identity, otherwise it is unknown.

    example:
      metabin gallery identify people.db new.jpg --model=runs/mine --threshold=threshold.json
    """
    from metabin_jax.cli.retrieval import load_features, load_model
    from metabin_jax.retrieval import search, tables
    from metabin_jax.retrieval.features import check_same_model
    from metabin_jax.retrieval.gallery import Gallery, Identities

    target = check_table(options)
    threshold = search.read_threshold(options.threshold)
    with Gallery(options.file) as file:
        gallery = file.features()
    identities = Identities(gallery)
    threshold.check(gallery.made_by)
    query, status = load_features(options.query, load_model(options, options.query))
    check_same_model(query.made_by, "the query", gallery.made_by, options.file)
    rows = []
    for path, (best, *others) in zip(query.path.tolist(), identities.nearest(query.feature), strict=True):
        decision = best.pid if best.similarity > threshold.value else "unknown"
        rows.append((path, decision, *best, *(others[0] if others else (None, None, None))))
    if target:
        ends = ("pid", "domain", "similarity")
        header = ("query", "decision", *(f"nearest_{end}" for end in ends), *(f"runner_up_{end}" for end in ends))
        tables.write(target, header, rows)
        print(f"{target} has {counted(len(rows), 'row')}")
    else:
        for path, decision, pid, domain, similarity, *runner_up in rows:
            second = f", then {runner_up[0]} ({runner_up[2]:.4f})" if runner_up[2] is not None else ""
            print(
                printable(f"{path}: {decision}  (nearest {pid}{domain and f' of {domain}'} {similarity:.4f}{second})")
            )
    print(printable(threshold.words), file=sys.stderr)
    return status


ACTIONS = (add, remove, label, list_, identify)
