"""The lists of a search as one HTML page with pictures."""

import itertools
import operator
from collections.abc import Sequence
from pathlib import Path

from metabin_jax.report import html
from metabin_jax.runtime.errors import needs
from metabin_jax.runtime.files import write_text

SUFFIX = ".html"
MOST = 200  # queries on a page


def check(path: Path) -> None:
    """Raises UserError if this is a page and what writes it is not installed."""
    if path.suffix.lower() == SUFFIX:
        needs(f"{path}: a page", "report", "jinja2")


def write(path: Path, table: Sequence[tuple], words: str) -> None:
    """Writes rows of `retrieval.search.rows` as a page. words: about the threshold.

    The page shows the first MOST queries and says so. A picture that cannot be read any more is a box with a word.
    """
    lists = [(query, list(rows)) for query, rows in itertools.groupby(table, key=operator.itemgetter(0))]
    write_text(path, html.render("search.html", str, lists=lists[:MOST], count=len(lists), words=words))
