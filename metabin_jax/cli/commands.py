"""metabin embed, search and calibrate: their options, and what they print."""

import argparse
import contextlib
import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metabin_jax.cli.options import Parser, not_empty
from metabin_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from metabin_jax.retrieval.encoder import Encoder
    from metabin_jax.retrieval.features import Features

MAX_NAMED = 5  # images that cannot be read

IMAGES_HELP = """a folder of images (any layout and depth, video frames too), a CSV list of them, or an image.
                          Names as in Market-1501, <identity>_c<camera>..., give pid, camid and, by their folder,
                          domain. The CSV has the column path and may have pid, camid, domain"""

EMBED_HELP = f"""usage: metabin embed PATH --checkpoint=RUN [--output=features.npz]

  PATH                    {IMAGES_HELP}
  --checkpoint=RUN        a workdir of metabin train: its net, image size and selected checkpoint
  --output=FILE           .npz (the default is features.npz) or .parquet

The file holds path (absolute), feature (float32, of length one), pid and domain (text, empty where not known), camid
(-1 where not known), and the run that made them. A folder's images are in natural order (frame_9, frame_10), a list's
in its own. Images that cannot be read are left out, and counted and named at the end: the file is written without
them, and the exit status is 1. It appears when it is complete."""

SEARCH_HELP = f"""usage: metabin search --query=IMAGES --gallery=IMAGES [--checkpoint=RUN] [-k 10]
                      [--threshold=FILE|NUMBER] [--output=FILE.csv]

  --query=, --gallery=    a file of metabin embed, or
                          {IMAGES_HELP}
  --checkpoint=RUN        a workdir of metabin train; needed where images are given, checked against the files
  -k 10                   how many to list
  --threshold=            what metabin calibrate wrote, or a number from -1 to 1: more similar than that is "same"
  --output=FILE.csv       write query,rank,similarity,path,pid,camid,domain,decision instead of printing them

Lists the most similar gallery images of each query with their cosine similarity, from -1 to 1; the search is exact.
A query that is in the gallery itself, by its path, is left out of its own list. Features of two models are refused.
The exit status is 1 where images could not be read."""

CALIBRATE_HELP = f"""usage: metabin calibrate IMAGES [--checkpoint=RUN] [--far=0.001] [--output=threshold.json]

  IMAGES                  a file of metabin embed, or
                          {IMAGES_HELP}
  --checkpoint=RUN        a workdir of metabin train; needed where images are given, checked against a file
  --far=0.001             the share of pairs of different people that may be called the same
  --output=FILE           threshold.json by default; for metabin search --threshold=FILE

Positive pairs are of one identity from two cameras, negative ones of two identities; both within a domain. Measures
the share of each above the threshold, with 95 % intervals by resampling identities (pairs are not independent). Take
people and cameras that the run was not trained on. Fewer negative pairs than 1 / far are refused."""


def embed(arguments: list[str]) -> int:
    parser = Parser()
    parser.add_argument("path")
    parser.add_argument("--checkpoint", required=True, type=not_empty)
    parser.add_argument("--output", default="features.npz")
    options = parser.parse_args(arguments)
    from metabin_jax.data.listing import list_images
    from metabin_jax.retrieval import features
    from metabin_jax.retrieval.encoder import embed_images, load_encoder

    output = features.check_output(options.output)
    images = list_images(options.path)
    embedded, broken = embed_images(load_encoder(options.checkpoint), images)
    features.write(output, embedded)
    print(f"{len(embedded):,} features of {embedded.feature.shape[1]} numbers are in {output}")
    return _left_out(broken, len(images))


def search(arguments: list[str]) -> int:
    parser = Parser()
    parser.add_argument("--query", required=True)
    parser.add_argument("--gallery", required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("-k", type=_count, default=10)
    parser.add_argument("--threshold")
    parser.add_argument("--output")
    options = parser.parse_args(arguments)
    from metabin_jax.retrieval import search
    from metabin_jax.runtime.files import check_writable, write_text

    output = check_writable(options.output) if options.output else None
    threshold = search.read_threshold(options.threshold) if options.threshold else None
    encoder = _encoder(options.checkpoint, options.query, options.gallery)
    if threshold and encoder:
        threshold.check(encoder.made_by)
    # Files first: what is wrong with them shows before anything is embedded.
    sources = sorted({options.gallery, options.query}, key=lambda source: (_is_images(source), source))
    found = {source: _features(source, encoder) for source in sources}
    (gallery, gallery_status), (query, query_status) = found[options.gallery], found[options.query]
    if threshold:
        threshold.check(query.made_by)
    lists = search.search(query, gallery, options.k)
    table = list(search.rows(query, gallery, lists, threshold))
    if output:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([search.HEADER, *table])
        write_text(output, text.getvalue())
        print(f"{output} has {len(table):,} rows (queries: {len(query):,})")
    else:
        for line in search.report(table):
            print(line)
    if threshold:
        print(threshold.words)
    own = len(set(query.path.tolist()) & set(gallery.path.tolist()))
    if own:
        print(f"queries that are in the gallery and left out of their own lists: {own:,}", file=sys.stderr)
    if any(len(matches) < options.k for matches in lists):
        print(f"the gallery holds only {len(gallery):,} images: -k {options.k} lists all of them", file=sys.stderr)
    return max(gallery_status, query_status)


def calibrate(arguments: list[str]) -> int:
    parser = Parser()
    parser.add_argument("images")
    parser.add_argument("--checkpoint")
    parser.add_argument("--far", type=_rate, default=1e-3)
    parser.add_argument("--output", default="threshold.json")
    options = parser.parse_args(arguments)
    from metabin_jax.retrieval.calibrate import calibrate
    from metabin_jax.runtime.files import check_writable, write_json

    output = check_writable(options.output)
    features, status = _features(options.images, _encoder(options.checkpoint, options.images))
    result = calibrate(features, options.far)
    write_json(output, dataclasses.asdict(result))
    print(f"{result}\nthe threshold is in {output}")
    return status


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def _rate(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not {text!r}")


def _encoder(checkpoint: str | None, *sources: str) -> "Encoder | None":
    from metabin_jax.retrieval.encoder import load_encoder

    images = [source for source in sources if _is_images(source)]
    if images and not checkpoint:
        raise UserError(f"{images[0]} is no feature file: --checkpoint=RUN says with which net to embed it")
    return load_encoder(checkpoint) if checkpoint else None


def _is_images(source: str) -> bool:
    from metabin_jax.retrieval.features import SUFFIXES

    return Path(source).suffix not in SUFFIXES


def _features(source: str, encoder: "Encoder | None") -> tuple["Features", int]:
    """Of a feature file, or of images, which need the encoder; and the exit status."""
    from metabin_jax.data.listing import list_images
    from metabin_jax.retrieval import features
    from metabin_jax.retrieval.encoder import embed_images

    if encoder is None or not _is_images(source):
        found = features.read(source)
        if encoder:
            features.check_same_model(found.made_by, source, encoder.made_by, "--checkpoint")
        return found, 0
    images = list_images(source)
    found, broken = embed_images(encoder, images)
    return found, _left_out(broken, len(images))


def _left_out(broken: Sequence[str], total: int) -> int:
    """Names the images that could not be read; the exit status."""
    if broken:
        named = ", ".join(broken[:MAX_NAMED]) + (", ..." if len(broken) > MAX_NAMED else "")
        print(f"{len(broken):,} of {total:,} images cannot be read and are left out: {named}", file=sys.stderr)
    return 1 if broken else 0
