"""Lists of pictures as one HTML page: what a search found, or labels that are likely wrong."""

import itertools
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metabin_jax.report import html
from metabin_jax.runtime.errors import counted, needs
from metabin_jax.runtime.files import write_text

SUFFIX = ".html"
MOST = 200  # lists on a page


class List(NamedTuple):
    """A picture with a text, and rows of `retrieval.search.rows`."""

    text: str
    query: str
    rows: Sequence[tuple]


def check(path: Path) -> None:
    """Raises UserError if this is a page and what writes it is not installed."""
    if path.suffix.lower() == SUFFIX:
        needs(f"{path}: a page", "report", "jinja2")


def write_search(path: Path, table: Sequence[tuple], words: str) -> None:
    """Writes rows of `retrieval.search.rows` as a page, a list for each query. words: about the threshold."""
    groups = itertools.groupby(table, key=operator.itemgetter(0))
    lists = [List(query, query, list(rows)) for query, rows in groups]
    lead = "Each query, then the most similar images of the gallery with their cosine similarity; 1 is the same image."
    write(path, lists, f"Search: {counted(len(lists), 'query', 'queries')}", [lead, *words.splitlines()])


def write(path: Path, lists: Sequence[List], title: str, words: Sequence[str]) -> None:
    """Writes a page with the first MOST lists, and says if there are more. A picture that cannot be read is a word."""
    write_text(path, html.render("search.html", str, lists=lists[:MOST], count=len(lists), title=title, words=words))
