"""Verification: are two images of one person, decided by a threshold on their cosine similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metabin_jax.evaluation.distances import unit_length
from metabin_jax.evaluation.inputs import Labels, check_features, check_labels
from metabin_jax.evaluation.ranking import images_of

# A tile of scores is 16 MB in float32.
_QUERY_ROWS, _GALLERY_ROWS = 1024, 4096


@dataclass(frozen=True)
class Verification:
    """What accepting every pair with a score above `threshold` gives; nan where it cannot be measured.

    Attributes:
      threshold: the lowest at which the false accept rate is at most the one asked for; nan with fewer
        negative pairs than 1 / that rate.
      tpr: share of the positive pairs above it; nan without a threshold or without a positive pair.
      far: share of the negative pairs above it: the rate asked for, or less if scores are equal.
      num_positive: pairs of one identity from two cameras.
      num_negative: pairs of two identities.
    """

    threshold: float
    tpr: float
    far: float
    num_positive: int
    num_negative: int

    def __str__(self) -> str:
        threshold = "n/a" if np.isnan(self.threshold) else f"{self.threshold:.3f}"
        pairs = f"{self.num_positive:,} positive, {self.num_negative:,} negative pairs"
        return f"TPR {percent(self.tpr)} at FAR {percent(self.far, 3)}, threshold {threshold} ({pairs})"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in %, "n/a" for nan."""
    return "n/a" if np.isnan(fraction) else f"{100 * fraction:.{digits}f} %"


class Pairs(NamedTuple):
    """Pairs of a query and a gallery image: cosine similarity [P], and both rows int64 [P]."""

    score_P: NDArray
    query_P: NDArray[np.int64]
    gallery_P: NDArray[np.int64]


class ScoredPairs(NamedTuple):
    """All positive pairs, the negative pairs with the highest scores, and negative pairs per bin over [-1, 1]."""

    positive: Pairs
    highest: Pairs
    negative_B: NDArray[np.int64]


def verification(
    query_QD: ArrayLike,
    gallery_GD: ArrayLike,
    query_pid: ArrayLike,
    gallery_pid: ArrayLike,
    query_camid: ArrayLike,
    gallery_camid: ArrayLike,
    far: float = 1e-3,
) -> Verification:
    """True positive rate at a false accept rate over all pairs of a query and a gallery image.

    Pairs of one identity from one camera are left out. The result is exact; scores are made in tiles, and only the
    positive ones and the highest far * num_negative negative ones are kept.

    Args:
      query_QD, gallery_GD: features, any real dtype, of finite values; scores are float64 for float64 features and
        float32 otherwise.
      query_pid, gallery_pid, query_camid, gallery_camid: as in `rank_metrics`.
      far: the false accept rate asked for, above 0 and below 1.

    Raises:
      ValueError: far is out of range, shapes disagree, labels are not integers, a feature is not finite.
    """
    return verify(query_QD, gallery_GD, (query_pid, gallery_pid, query_camid, gallery_camid), far)[0]


def verify(
    query_QD: ArrayLike, gallery_GD: ArrayLike, labels: Sequence[ArrayLike], far: float, bins: int = 0
) -> tuple[Verification, ScoredPairs]:
    """`verification` with the labels in its order, and the pairs that it is about; bins as in `scored_pairs`."""
    if not 0 < far < 1:
        raise ValueError(f"far must be above 0 and below 1, not {far}.")
    query_QD, gallery_GD = check_features(query_QD, gallery_GD)
    checked = check_labels(labels, len(query_QD), len(gallery_GD))
    num_same_pid = sum(map(len, images_of(checked.query_pid, checked.gallery_pid)))
    num_negative = len(query_QD) * len(gallery_GD) - num_same_pid
    allowed = allowed_accepts(far, num_negative)
    pairs = scored_pairs(query_QD, gallery_GD, checked, allowed + 1, bins=bins)
    positive_P, highest_K = pairs.positive.score_P, pairs.highest.score_P
    num_positive = len(positive_P)
    if allowed == 0:
        return Verification(nan, nan, nan, num_positive, num_negative), pairs
    threshold = highest_K.min()
    tpr = float((positive_P > threshold).mean()) if num_positive else nan
    achieved = int((highest_K > threshold).sum()) / num_negative
    return Verification(float(threshold), tpr, achieved, num_positive, num_negative), pairs


def allowed_accepts(far: float, num_negative: int) -> int:
    """The largest number of negative pairs whose share is at most far, whatever far * num_negative rounds to."""
    nearest = round(far * num_negative)
    return nearest - (nearest > 0 and nearest / num_negative > far)


def scored_pairs(
    query_QD: NDArray, gallery_GD: NDArray, labels: Labels, keep: int, once: bool = False, bins: int = 0
) -> ScoredPairs:
    """Scores of all pairs, in tiles; pairs of one identity from one camera are left out.

    Args:
      keep: the number of negative pairs to keep.
      once: queries and gallery are the same images, of which each two are one pair.
      bins: over [-1, 1], for the numbers of negative pairs.
    """
    dtype = np.result_type(query_QD, gallery_GD, np.float32)
    none = Pairs(np.empty(0, dtype), np.empty(0, np.int64), np.empty(0, np.int64))
    positives, highest, negative_B = [none], none, np.zeros(bins, np.int64)
    for g in range(0, len(gallery_GD), _GALLERY_ROWS):
        gallery = slice(g, g + _GALLERY_ROWS)
        unit_GD = unit_length(gallery_GD[gallery].astype(dtype, copy=False))
        for q in range(0, len(query_QD), _QUERY_ROWS):
            query = slice(q, q + _QUERY_ROWS)
            score_QG = unit_length(query_QD[query].astype(dtype, copy=False)) @ unit_GD.T
            same_pid_QG = labels.query_pid[query, None] == labels.gallery_pid[gallery]
            positive_QG = same_pid_QG & (labels.query_camid[query, None] != labels.gallery_camid[gallery])
            negative_QG = ~same_pid_QG
            if once:
                is_new_QG = q + np.arange(len(score_QG))[:, None] < g + np.arange(len(unit_GD))
                positive_QG, negative_QG = positive_QG & is_new_QG, negative_QG & is_new_QG
            if bins:
                negative_B += score_bins(score_QG[negative_QG], bins)
            if len(highest.score_P) == keep:
                # Only what is above the lowest one kept can take its place.
                negative_QG &= score_QG > highest.score_P.min()
            if np.count_nonzero(negative_QG) > keep:
                negative_QG &= score_QG >= np.partition(score_QG[negative_QG], -keep)[-keep]
            positives.append(_pick(score_QG, positive_QG, q, g))
            highest = join_pairs([highest, _pick(score_QG, negative_QG, q, g)], keep)
    return ScoredPairs(join_pairs(positives), highest, negative_B)


def join_pairs(parts: Sequence[Pairs], keep: int | None = None) -> Pairs:
    """All pairs of the parts, or the `keep` with the highest scores, these in any order."""
    pairs = Pairs._make(np.concatenate(columns) for columns in zip(*parts, strict=True))
    if keep is None or len(pairs.score_P) <= keep:
        return pairs
    kept = np.argpartition(pairs.score_P, -keep)[-keep:]
    return Pairs._make(column[kept] for column in pairs)


def score_bins(score_P: NDArray, bins: int) -> NDArray[np.int64]:
    """Numbers of scores per bin over [-1, 1]; rounding takes scores a little beyond."""
    bin_P = np.clip((score_P + 1) * (bins / 2), 0, bins - 1).astype(np.int64)
    return np.bincount(bin_P, minlength=bins)


def _pick(score_QG: NDArray, chosen_QG: NDArray, first_query: int, first_gallery: int) -> Pairs:
    # np.nonzero of two dimensions takes fifty times as long.
    query_P, gallery_P = np.divmod(np.flatnonzero(chosen_QG), chosen_QG.shape[1])
    return Pairs(score_QG[chosen_QG], first_query + query_P, first_gallery + gallery_P)
