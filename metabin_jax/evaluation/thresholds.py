"""Verification: are two images of one person, decided by a threshold on their cosine similarity."""

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metabin_jax.evaluation.inputs import Labels, check_features
from metabin_jax.evaluation.metrics import unit_length

# A tile of scores is 16 MB in float32.
_QUERY_ROWS, _GALLERY_ROWS = 1024, 4096


@dataclass(frozen=True)
class Verification:
    """What accepting every pair with a score above `threshold` gives; nan where it cannot be measured.

    Attributes:
      threshold: the lowest at which the false accept rate is not above the one asked for; nan with fewer
        negative pairs than 1 / that rate.
      tpr: share of the positive pairs above it; nan without a threshold or without a positive pair.
      far: share of the negative pairs above it: the rate asked for, or less where scores are equal.
      num_positive: pairs of one identity from two cameras.
      num_negative: pairs of two identities.
    """

    threshold: float
    tpr: float
    far: float
    num_positive: int
    num_negative: int

    def __str__(self) -> str:
        tpr, far, threshold = (
            "n/a" if np.isnan(value) else f"{value:.4g}" for value in (self.tpr, self.far, self.threshold)
        )
        pairs = f"{self.num_positive} positive and {self.num_negative} negative pairs"
        return f"TPR {tpr} at FAR {far}, threshold {threshold}, {pairs}"


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
      query_QD, gallery_GD: features, any real dtype, of finite values; scores are float32, or float64 where the
        features are.
      query_pid, query_camid: any integers [Q].
      gallery_pid, gallery_camid: any integers [G].
      far: the false accept rate asked for, above 0 and below 1.

    Raises:
      ValueError: far is out of range, shapes disagree, labels are not integers, a feature is not finite.
    """
    if not 0 < far < 1:
        raise ValueError(f"far must be above 0 and below 1, not {far}.")
    query_QD, gallery_GD = check_features(query_QD, gallery_GD)
    labels = Labels.check(query_pid, gallery_pid, query_camid, gallery_camid, len(query_QD), len(gallery_GD))
    num_negative = _count_negative(labels)
    allowed = allowed_accepts(far, num_negative)

    positive_P, highest_K = _scores(query_QD, gallery_GD, labels, allowed + 1)
    num_positive = len(positive_P)
    if allowed == 0:
        return Verification(nan, nan, nan, num_positive, num_negative)
    threshold = highest_K.min()
    tpr = float((positive_P > threshold).mean()) if num_positive else nan
    false_accepts = int((highest_K > threshold).sum())
    return Verification(float(threshold), tpr, false_accepts / num_negative, num_positive, num_negative)


def _count_negative(labels: Labels) -> int:
    pid_G = np.sort(labels.gallery_pid)
    same_pid_Q = np.searchsorted(pid_G, labels.query_pid, "right") - np.searchsorted(pid_G, labels.query_pid, "left")
    return len(labels.query_pid) * len(pid_G) - int(same_pid_Q.sum())


def allowed_accepts(far: float, num_negative: int) -> int:
    """The largest number of negative pairs whose share is not above far, whatever far * num_negative rounds to."""
    nearest = round(far * num_negative)
    return nearest - (nearest > 0 and nearest / num_negative > far)


def _scores(query_QD: NDArray, gallery_GD: NDArray, labels: Labels, keep: int) -> tuple[NDArray, NDArray]:
    """The scores of all positive pairs, and the `keep` highest ones of negative pairs."""
    dtype = np.result_type(query_QD, gallery_GD, np.float32)
    positive_of_tile = [np.empty(0, dtype)]
    highest_K = np.empty(0, dtype)
    for g in range(0, len(gallery_GD), _GALLERY_ROWS):
        gallery = slice(g, g + _GALLERY_ROWS)
        unit_GD = unit_length(gallery_GD[gallery].astype(dtype, copy=False))
        for q in range(0, len(query_QD), _QUERY_ROWS):
            query = slice(q, q + _QUERY_ROWS)
            score_QG = unit_length(query_QD[query].astype(dtype, copy=False)) @ unit_GD.T
            same_pid_QG = labels.query_pid[query, None] == labels.gallery_pid[gallery]
            other_camid_QG = labels.query_camid[query, None] != labels.gallery_camid[gallery]
            positive_of_tile.append(score_QG[same_pid_QG & other_camid_QG])
            candidate_QG = ~same_pid_QG
            if len(highest_K) == keep:
                # Only what is above the lowest one kept can take its place.
                candidate_QG &= score_QG > highest_K.min()
            highest_K = np.concatenate([highest_K, score_QG[candidate_QG]])
            if len(highest_K) > keep:
                highest_K = np.partition(highest_K, len(highest_K) - keep)[len(highest_K) - keep :]
    return np.concatenate(positive_of_tile), highest_K
