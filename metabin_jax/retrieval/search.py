"""The most similar gallery images, and whether they show the query's person."""

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabin_jax.evaluation import ranking
from metabin_jax.evaluation.distances import distance_blocks
from metabin_jax.evaluation.thresholds import percent
from metabin_jax.retrieval.features import Features, check_made_by, check_same_model
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.files import read_json


class Match(NamedTuple):
    """A gallery image in a query's list: its row, and its cosine similarity in [-1, 1]."""

    row: int
    similarity: float


def search(query: Features, gallery: Features, k: int) -> list[list[Match]]:
    """The k most similar gallery images of each query, fewer if the gallery is smaller.

    An image of the query's own path is left out of its list. Of equally similar images the first in the gallery comes
    first.

    Raises:
      ValueError: k is less than 1; the features are of two models.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    check_same_model(query.made_by, "the query", gallery.made_by, "the gallery")
    row_QK, similarity_QK = nearest(query.feature, gallery.feature, k + ranking.most_shared(query.path, gallery.path))
    lists = []
    for path, row_K, similarity_K in zip(query.path, row_QK, similarity_QK, strict=True):
        others = gallery.path[row_K] != path
        lists.append([*map(Match, row_K[others][:k].tolist(), similarity_K[others][:k].tolist())])
    return lists


def nearest(
    query_QD: NDArray[np.float32], gallery_GD: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows [Q, k] of the gallery by decreasing cosine similarity, and the similarities [Q, k].

    Exact; of equally similar images the first in the gallery comes first.
    """
    ranked = ranking.rank(distance_blocks(query_QD, gallery_GD), nearest=k)
    return ranked.nearest_QK, np.clip(1 - ranked.distance_QK, -1, 1)


class Threshold(NamedTuple):
    """Two images with a similarity above `value` are called the same person; `words` say how often wrongly.

    made_by: of the features it was calibrated on, as in `Features`. rates: the share of pairs of different people above
    it, and the ends of its 95 % interval. Both are None for a value given by hand.
    """

    value: float
    words: str
    made_by: dict | None
    rates: tuple[float, float, float] | None = None

    def in_gallery(self, size: int) -> str:
        """How often a search in a gallery of so many images is wrong, in words; "" for a value given by hand."""
        return f"\n{false_matches(self.rates, size)}" if self.rates else ""

    def check(self, made_by: dict) -> None:
        """Raises ValueError if it was calibrated on features of another model than those `made_by`."""
        if self.made_by:
            advice = "calibrate again with the model of the features"
            check_same_model(self.made_by, "the threshold", made_by, "the features", advice)


def read_threshold(text: str) -> Threshold:
    """A number, or what `metabin calibrate` wrote.

    Raises FileNotFoundError, or ValueError for a number out of [-1, 1] or a file of another kind.
    """
    try:
        value = float(text)
    except ValueError:
        return _read_threshold_file(Path(text).expanduser())
    if not -1 <= value <= 1:
        raise UserError(f"the threshold is a cosine similarity, from -1 to 1, not {text}.")
    return Threshold(value, f"threshold {value:.4f}, given by hand: its error rate is not known", None)


def _read_threshold_file(path: Path) -> Threshold:
    if not path.is_file():
        raise FileNotFoundError(
            f"the threshold {path} does not exist: give a number, or a file that metabin calibrate wrote."
        )
    content = read_json(path, "give a number, or a file that metabin calibrate wrote")
    try:
        far, tpr = content["far_asked"], content["tpr"]
        low, high = content["far_interval"]
        rates = [far, content["far"], low, high, *([] if tpr is None else [tpr])]
        if not all(0 <= rate <= 1 for rate in rates) or not -1.001 <= content["threshold"] <= 1.001:  # of rounding
            raise ValueError("a number in it is out of range")
        found = "" if tpr is None else f", and {percent(tpr)} of pairs of one person above it"
        words = (
            f"threshold {content['threshold']:.4f}: calibrated for {far:.4g} of pairs of different people above it"
            f" (measured {content['far']:.4g}, 95 % interval {low:.3g} to {high:.3g}){found}"
        )
        check_made_by(content["made_by"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a threshold of metabin calibrate ({error!r}).") from error
    return Threshold(content["threshold"], words, content["made_by"], (content["far"], low, high))


def false_matches(rates: Sequence[float], size: int) -> str:
    """What a false accept rate and its interval mean for each query of a gallery of so many images."""
    most, low, high = (f"{rate * size:.2g}" for rate in rates)
    return f"in a gallery of {size:,} other people's images: {most} of them called the same per query ({low} to {high})"


HEADER = ("query", "rank", "similarity", "path", "pid", "camid", "domain", "decision")


def rows(
    query: Features, gallery: Features, lists: Iterable[list[Match]], threshold: Threshold | None
) -> Iterator[tuple]:
    """The matches as rows under HEADER; an unknown camera is None, another unknown text "", as an absent decision."""
    for path, matches in zip(query.path, lists, strict=True):
        for rank, match in enumerate(matches, start=1):
            decision = ("same" if match.similarity > threshold.value else "different") if threshold else ""
            yield str(path), rank, float(match.similarity), *gallery.labels(match.row), decision


def report(table: Iterable[tuple]) -> Iterator[str]:
    """The rows as lines for people, query by query."""
    for query, matches in itertools.groupby(table, key=operator.itemgetter(0)):
        yield query
        for _, rank, similarity, path, pid, camid, domain, decision in matches:
            named = (("pid", pid), ("camera", camid), ("domain", domain))
            labels = ", ".join(f"{name} {value}" for name, value in named if value not in ("", None))
            yield f"{rank:4}  {similarity:7.4f}  {decision:9}  {path}" + (f"  ({labels})" if labels else "")
