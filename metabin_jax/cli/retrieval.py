"""The commands about images and their features. They import late, so that --help is quick."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metabin_jax.cli.options import (
    FEATURES,
    IMAGES,
    MODEL,
    MODEL_OF_IMAGES,
    SIZE,
    Option,
    check_output,
    check_table,
    command,
    option,
    output,
)
from metabin_jax.runtime.errors import UserError, counted, few, printable

if TYPE_CHECKING:
    from metabin_jax.retrieval.features import Features
    from metabin_jax.training.trained import Trained


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not {text!r}")


def threshold_option(**settings: bool) -> Option:
    words = 'of metabin calibrate, or from -1 to 1; "same" is above it'
    return option("--threshold", metavar="FILE|NUMBER", help=words, **settings)


@command(
    option("path", metavar="IMAGES", help=IMAGES),
    MODEL,
    SIZE,
    *output("a .npz or .parquet file (default: features.npz)", default="features.npz"),
)
def embed(options: argparse.Namespace) -> int:
    """Write the features of images to a file.

    The file holds path (absolute), feature (float32, of length one), pid and domain (text, empty if unknown), camid
    (-1 if unknown), and the run that made them. A folder's images are in natural order (frame_9, frame_10). Images
    that cannot be read are left out, counted and named; the exit status is then 1.

    example:
      metabin embed pictures --model=runs/mine --output=gallery.npz
    """
    from metabin_jax.retrieval import features
    from metabin_jax.retrieval.encoder import embed_images
    from metabin_jax.retrieval.listing import list_images
    from metabin_jax.training import trained

    features.check_output(options.output)
    output = check_output(options)
    images = list_images(options.path)
    embedded, broken = embed_images(trained.load(options.model, size=options.size), images)
    features.write(output, embedded)
    print(f"{len(embedded):,} features of {embedded.feature.shape[1]} numbers are in {output}")
    return left_out(broken, len(images))


@command(
    option("--query", required=True, metavar="IMAGES", help=FEATURES),
    option(
        "--gallery",
        required=True,
        nargs="+",
        metavar="IMAGES",
        help="where to search, given like the query; several are searched as one",
    ),
    MODEL_OF_IMAGES,
    SIZE,
    option("-k", type=_count, default=10, help="how many images to list (default: 10)"),
    threshold_option(),
    *output("a .csv, .json, .parquet or .html file for the lists, instead of printing them"),
)
def search(options: argparse.Namespace) -> int:
    """Find the most similar images of a gallery, and whether they show the same person.

    Lists the most similar gallery images of each query with their cosine similarity, from -1 to 1; the search is
    exact. A query that is in the gallery too, by its path, is left out of its own list. Features of two models are
    refused. If images cannot be read, the exit status is 1. An .html page shows the images; it needs jinja2.

    examples:
      metabin search --query=new.jpg --gallery=gallery.npz --model=runs/mine -k 5
      metabin search --query=query.npz --gallery=gallery.npz --threshold=threshold.json --output=matches.csv
    """
    from metabin_jax.report import search_page
    from metabin_jax.retrieval import features, search, tables

    output = check_table(options, pages=True)
    threshold = search.read_threshold(options.threshold) if options.threshold else None
    run = load_model(options, options.query, *options.gallery)
    if threshold and run:
        threshold.check(run.made_by)
    # Files first: what is wrong with them shows before anything is embedded.
    sources = sorted({*options.gallery, options.query}, key=lambda source: (is_images(source), source))
    found = {source: load_features(source, run) for source in sources}
    query, first = found[options.query][0], found[options.gallery[0]][0]
    for source in options.gallery[1:]:
        features.check_same_model(found[source][0].made_by, source, first.made_by, options.gallery[0])
    gallery = features.join([found[source][0] for source in options.gallery])
    if threshold:
        threshold.check(query.made_by)
    lists = search.search(query, gallery, options.k)
    table = list(search.rows(query, gallery, lists, threshold))
    words = threshold.words + threshold.in_gallery(len(gallery)) if threshold else ""
    if output:
        if output.suffix.lower() == search_page.SUFFIX:
            search_page.write_search(output, table, words)
        else:
            tables.write(output, search.HEADER, table)
        print(f"{output} has {counted(len(table), 'row')} of {counted(len(query), 'query', 'queries')}")
    else:
        for line in search.report(table):
            print(printable(line))
    for line in words.splitlines():
        print(printable(line))
    own = len(set(query.path.tolist()) & set(gallery.path.tolist()))
    if own:
        print(f"queries that are in the gallery and left out of their own lists: {own:,}", file=sys.stderr)
    if any(len(matches) < options.k for matches in lists):
        print(f"the gallery holds only {len(gallery):,} images: -k {options.k} lists all of them", file=sys.stderr)
    return max(status for _, status in found.values())


@command(
    option("images", metavar="IMAGES", help=FEATURES),
    MODEL_OF_IMAGES,
    SIZE,
    option("--far", type=_rate, metavar="RATE", help="the false accept rate (default: 0.001)"),
    option("--far-per-query", type=_number, metavar="N", help="instead: false matches per query in the gallery"),
    option("--gallery-size", type=_count, metavar="N", help="images in that gallery (default: those given here)"),
    *output("the threshold, for metabin search (default: threshold.json)", default="threshold.json"),
)
def calibrate(options: argparse.Namespace) -> int:
    """Find the threshold for a false accept rate, from labelled images.

    The false accept rate is the share of pairs of different people whose similarity is above the threshold. Pairs are
    of one domain; pairs of one person are of two cameras. Prints both shares with 95 % intervals by resampling
    identities (pairs are not independent). Take people and cameras that the run was not trained on.

    A search makes as many comparisons per query as the gallery has images, so a rate that looks small can be wrong for
    every query. --far-per-query=0.1 --gallery-size=5000 finds the threshold at which one query in ten meets a false
    match in a gallery of 5,000 images.

    examples:
      metabin calibrate pictures/south --model=runs/mine --far=0.001 --output=threshold.json
      metabin calibrate pictures/south --model=runs/mine --far-per-query=0.1 --gallery-size=5000
    """
    from metabin_jax.retrieval.calibrate import calibrate
    from metabin_jax.retrieval.search import false_matches
    from metabin_jax.runtime.files import write_json
    from metabin_jax.training.evaluate import warn_of_trained

    if options.far and options.far_per_query:
        raise UserError("--far and --far-per-query are two ways to say one thing: give one of them")
    output = check_output(options)
    features, status = load_features(options.images, load_model(options, options.images))
    size = options.gallery_size or len(features)
    far = options.far or 1e-3
    if options.far_per_query and (far := options.far_per_query / size) >= 1:
        raise UserError(
            f"--far-per-query={options.far_per_query:g} is every image of a gallery of {size:,}: ask for less"
        )
    columns = (features.path, features.domain, features.pid)
    known = [image for image in zip(*(column.tolist() for column in columns), strict=True) if image[2]]
    warn_of_trained(Path(features.made_by["run"]), known)
    result = calibrate(features, far)
    if result.tpr == 0:
        missed = "no pair of one person is above this threshold, so a search with it finds nobody"
        print(f"warning: {missed}: ask for a higher rate", file=sys.stderr)
    write_json(output, dataclasses.asdict(result))
    print(f"{result}\n{false_matches((result.far, *result.far_interval), size)}\nthe threshold is in {output}")
    return status


def load_model(options: argparse.Namespace, *sources: str) -> "Trained | None":
    from metabin_jax.training import trained

    images = [source for source in sources if is_images(source)]
    if images and not options.model:
        raise UserError(f"{images[0]} is not a feature file: --model=RUN names the run that embeds it")
    return trained.load(options.model, size=options.size) if options.model else None


def is_images(source: str) -> bool:
    from metabin_jax.retrieval import features, gallery

    return Path(source).suffix not in (*features.SUFFIXES, gallery.SUFFIX)


def load_features(source: str, run: "Trained | None") -> tuple["Features", int]:
    """Reads a feature file or a gallery, or embeds images with the run. Returns the features and the exit status."""
    from metabin_jax.retrieval import features, gallery
    from metabin_jax.retrieval.encoder import embed_images
    from metabin_jax.retrieval.listing import list_images

    if run is None or not is_images(source):
        if Path(source).suffix == gallery.SUFFIX:
            with gallery.Gallery(source) as file:
                found = file.features()
        else:
            found = features.read(source)
        if run:
            features.check_same_model(found.made_by, source, run.made_by, "--model")
        return found, 0
    images = list_images(source)
    found, broken = embed_images(run, images)
    return found, left_out(broken, len(images))


def left_out(broken: Sequence[str], total: int) -> int:
    """Names the images that could not be read. Returns the exit status."""
    if broken:
        named = printable(few(broken))
        are = "is" if len(broken) == 1 else "are"
        print(f"{len(broken):,} of {total:,} images cannot be read and {are} left out: {named}", file=sys.stderr)
    return 1 if broken else 0
