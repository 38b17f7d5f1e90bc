"""The most similar gallery images, and whether they show the query's person."""

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from metabin_jax.retrieval.features import Features, check_same_model, describe
from metabin_jax.runtime.errors import UserError

# Similarities of a block of queries and a block of the gallery: 64 MB.
_QUERY_ROWS, _GALLERY_ROWS = 1024, 16_384


@dataclasses.dataclass(frozen=True)
class Match:
    """A gallery image in a query's list: its row, and its cosine similarity in [-1, 1]."""

    row: int
    similarity: float


def search(query: Features, gallery: Features, k: int) -> list[list[Match]]:
    """The k most similar gallery images of each query, fewer where the gallery has no more.

    An image of the query's own path is left out of its list. Of equally similar ones the first in the gallery comes
    first; where FAISS is installed, which of those equal at place k are listed is up to it.

    Raises:
      ValueError: k is less than 1; the features are of two models.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    check_same_model(query.made_by, "the query", gallery.made_by, "the gallery")
    paths, counts = np.unique(gallery.path, return_counts=True)
    own = int(counts[np.isin(paths, query.path)].max(initial=0))
    # On a CPU both take the same time and find the same; a GPU is faster than FAISS for CPUs.
    find = nearest_by_faiss if importlib.util.find_spec("faiss") and jax.default_backend() == "cpu" else nearest
    row_QK, similarity_QK = find(query.feature, gallery.feature, min(k + own, len(gallery)))
    lists = []
    for path, row_K, similarity_K in zip(query.path, row_QK, similarity_QK, strict=True):
        others = gallery.path[row_K] != path
        pairs = zip(row_K[others][:k].tolist(), similarity_K[others][:k].tolist(), strict=True)
        lists.append([Match(row, similarity) for row, similarity in pairs])
    return lists


def nearest(
    query_QD: NDArray[np.float32], gallery_GD: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows [Q, k] of the gallery by decreasing cosine similarity, and the similarities [Q, k]; features of length one.

    Exact, on the device, in blocks; of equally similar ones the first in the gallery comes first.
    """
    query_blocks = [jax.device_put(query_QD[q : q + _QUERY_ROWS]) for q in range(0, len(query_QD), _QUERY_ROWS)]
    best = [(np.empty((len(block), 0)), np.empty((len(block), 0), np.int64)) for block in query_blocks]
    for g in range(0, len(gallery_GD), _GALLERY_ROWS):
        block_GD = jax.device_put(gallery_GD[g : g + _GALLERY_ROWS])
        for number, block_QD in enumerate(query_blocks):
            similarity_QK, row_QK = _nearest_in_block(block_QD, block_GD, min(k, len(block_GD)))
            similarity_QA, row_QA = best[number]
            best[number] = _best_of_both(similarity_QA, row_QA, np.asarray(similarity_QK), np.asarray(row_QK) + g, k)
    similarity_QK, row_QK = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return row_QK, np.clip(similarity_QK, -1, 1)


@functools.partial(jax.jit, static_argnames="k")
def _nearest_in_block(query_QD: jax.Array, gallery_GD: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # GPUs would otherwise multiply with 10 bits, and the order would not be exact.
    return jax.lax.top_k(jnp.matmul(query_QD, gallery_GD.T, precision=jax.lax.Precision.HIGHEST), k)


def _best_of_both(
    similarity_QA: NDArray, row_QA: NDArray, similarity_QB: NDArray, row_QB: NDArray, k: int
) -> tuple[NDArray, NDArray]:
    """The best k of two lists; A's rows come before B's in the gallery."""
    similarity_QC = np.concatenate([similarity_QA, similarity_QB], axis=1).astype(np.float32)
    order_QK = np.argsort(-similarity_QC, axis=1, kind="stable")[:, :k]
    row_QC = np.concatenate([row_QA, row_QB], axis=1)
    return np.take_along_axis(similarity_QC, order_QK, 1), np.take_along_axis(row_QC, order_QK, 1)


def nearest_by_faiss(
    query_QD: NDArray[np.float32], gallery_GD: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`nearest` by FAISS's exact index; which of the rows equal at place k are found is up to it."""
    import faiss

    index = faiss.IndexFlatIP(gallery_GD.shape[1])
    index.add(np.ascontiguousarray(gallery_GD))
    similarity_QK, row_QK = index.search(np.ascontiguousarray(query_QD), k)
    order_QK = np.lexsort((row_QK, -similarity_QK), axis=1)
    return np.take_along_axis(row_QK, order_QK, 1), np.clip(np.take_along_axis(similarity_QK, order_QK, 1), -1, 1)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Two images are called the same person where their similarity is above `value`; `words` say how often wrongly.

    made_by: of the features it was calibrated on, as in `Features`; None where it was given by hand.
    """

    value: float
    words: str
    made_by: dict | None

    def check(self, made_by: dict) -> None:
        """Raises ValueError if it was calibrated on features of another model than those `made_by`."""
        if self.made_by:
            check_same_model(self.made_by, "the threshold", made_by, "the features")


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
        raise FileNotFoundError(f"the threshold {path} is no number, and no file of metabin calibrate either.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        value, tpr = float(content["threshold"]), content["tpr"]
        found = "" if tpr is None else f", and {tpr:.1%} of pairs of one person above it"
        words = (
            f"threshold {value:.4f}: calibrated for {content['far_asked']:.4g} of pairs of different people above it"
            f" (measured {content['far']:.4g}, 95 % interval {_interval(content['far_interval'])}){found}"
        )
        made_by = content["made_by"]
        describe(made_by)  # has all it needs
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a threshold of metabin calibrate ({error!r}).") from error
    return Threshold(value, words, made_by)


def _interval(interval: list[float]) -> str:
    return f"{interval[0]:.3g} to {interval[1]:.3g}"


HEADER = ("query", "rank", "similarity", "path", "pid", "camid", "domain", "decision")


def rows(
    query: Features, gallery: Features, lists: Iterable[list[Match]], threshold: Threshold | None
) -> Iterator[tuple]:
    """The matches as rows under HEADER; "" for what is not known, and for the decision without a threshold."""
    for path, matches in zip(query.path, lists, strict=True):
        for rank, match in enumerate(matches, start=1):
            row = match.row
            camid = "" if gallery.camid[row] < 0 else int(gallery.camid[row])
            decision = ("same" if match.similarity > threshold.value else "different") if threshold else ""
            labels = gallery.pid[row], camid, gallery.domain[row], decision
            yield str(path), rank, f"{match.similarity:.6f}", str(gallery.path[row]), *labels


def report(table: Iterable[tuple]) -> Iterator[str]:
    """The rows as lines for people, query by query."""
    before = None
    for query, rank, similarity, path, pid, camid, domain, decision in table:
        if query != before:
            yield query
            before = query
        named = (("pid", pid), ("camera", camid), ("domain", domain))
        labels = ", ".join(f"{name} {value}" for name, value in named if value != "")
        yield f"{rank:4}  {float(similarity):7.4f}  {decision:9}  {path}" + (f"  ({labels})" if labels else "")
