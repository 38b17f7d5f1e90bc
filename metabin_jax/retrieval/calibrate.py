"""The threshold on similarity above which two images show one person, with its error rates, from labelled images."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabin_jax.evaluation.thresholds import allowed_accepts
from metabin_jax.retrieval.features import Features
from metabin_jax.runtime.errors import UserError

RESAMPLES = 1000
_BLOCK_ELEMENTS = 4_000_000  # similarities made at a time: 16 MB


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What calling every pair above `threshold` one person gives; the fields of the JSON that is written.

    Attributes:
      threshold: the lowest at which the share of negative pairs above it is not above far_asked.
      far: that share. tpr: share of the positive pairs above it; None without a positive pair.
      far_interval, tpr_interval: 95 % intervals of both at this threshold, by resampling identities: pairs share
        images and identities, and an interval that took them for independent would be far too narrow.
      positive_pairs: of one identity from two cameras. negative_pairs: of two identities of one domain.
      images, identities: labelled ones. unlabelled: images without pid or camid, which are left out.
      made_by: as in `Features`.
    """

    threshold: float
    far_asked: float
    far: float
    far_interval: Sequence[float]
    tpr: float | None
    tpr_interval: Sequence[float] | None
    positive_pairs: int
    negative_pairs: int
    images: int
    identities: int
    unlabelled: int
    made_by: dict

    def __str__(self) -> str:
        low, high = self.far_interval
        tpr = "n/a, as no identity was seen by two cameras"
        if self.tpr is not None and self.tpr_interval is not None:
            tpr = f"{self.tpr:.1%} (95 % interval {self.tpr_interval[0]:.1%} to {self.tpr_interval[1]:.1%})"
        return (
            f"threshold {self.threshold:.4f}, from {self.images:,} images of {self.identities:,} identities"
            f" ({self.unlabelled:,} without labels left out)\n"
            f"pairs of different people above it: {self.far:.4g} of {self.negative_pairs:,}"
            f" (95 % interval {low:.3g} to {high:.3g})\n"
            f"pairs of one person above it: {tpr} of {self.positive_pairs:,}"
        )


class Pairs(NamedTuple):
    """Pairs of images: their similarity float32 [P], and the two identities int64 [P]."""

    similarity: NDArray[np.float32]
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def calibrate(features: Features, far: float) -> Calibration:
    """Measures on every pair of labelled images of one domain, each pair once.

    Pairs of one identity from one camera are left out, as in `evaluation.verification`; so are pairs across domains,
    whose pids have nothing to do with each other.

    Raises:
      ValueError: far is out of range; no image is labelled; there are fewer negative pairs than 1 / far.
    """
    if not 0 < far < 1:
        raise ValueError(f"far must be above 0 and below 1, not {far}.")
    row = np.flatnonzero((features.pid != "") & (features.camid >= 0))
    if not len(row):
        raise UserError(
            "no image has a pid and a camera: name the files <pid>_c<camera>..., or list them in a CSV with the columns"
            " path,pid,camid."
        )
    _, domain = np.unique(features.domain[row], return_inverse=True)
    _, own = np.unique(features.pid[row], return_inverse=True)
    (domain_of_identity, _), identity = np.unique(np.stack([domain, own]), axis=1, return_inverse=True)
    images_of_identity = np.bincount(identity)
    negatives = round(_negative_pairs(images_of_identity[None], domain_of_identity)[0])
    allowed = allowed_accepts(far, negatives)
    if allowed == 0:
        raise UserError(
            f"a false accept rate of {far:g} is n/a: it needs {1 / far:,.0f} pairs of different people or more, and"
            f" there are {negatives:,}: give more labelled images, or ask for a higher rate."
        )
    positive, highest = _pairs(features.feature[row], identity, features.camid[row], domain, allowed + 1)
    threshold = highest.similarity.min()
    hit = positive.similarity > threshold
    accept = highest.similarity > threshold

    # Each resample gives every identity the number of times it was drawn, domain by domain.
    rng = np.random.default_rng(0)
    weight_RI = np.zeros((RESAMPLES, len(images_of_identity)))
    for number in range(domain_of_identity[-1] + 1):
        inside = domain_of_identity == number
        weight_RI[:, inside] = rng.multinomial(inside.sum(), np.full(inside.sum(), 1 / inside.sum()), RESAMPLES)
    first, second = highest.first[accept], highest.second[accept]
    accepts_R = np.array([(weight_I[first] * weight_I[second]).sum() for weight_I in weight_RI])
    negatives_R = _negative_pairs(weight_RI * images_of_identity, domain_of_identity)
    count = len(images_of_identity)
    hits_R = weight_RI @ np.bincount(positive.first[hit], minlength=count)
    positives_R = weight_RI @ np.bincount(positive.first, minlength=count)
    return Calibration(
        threshold=float(threshold),
        far_asked=far,
        far=float(accept.sum() / negatives),
        far_interval=_interval(accepts_R, negatives_R),
        tpr=float(hit.mean()) if len(hit) else None,
        tpr_interval=_interval(hits_R, positives_R) if len(hit) else None,
        positive_pairs=len(hit),
        negative_pairs=negatives,
        images=len(row),
        identities=count,
        unlabelled=len(features) - len(row),
        made_by=features.made_by,
    )


def _negative_pairs(images_RI: NDArray, domain_I: NDArray) -> NDArray[np.float64]:
    """Pairs of images [R] of two identities of one domain, where identity i has images_RI[:, i] images."""
    pairs_R = np.zeros(len(images_RI))
    for number in range(domain_I[-1] + 1):
        inside_RI = images_RI[:, domain_I == number].astype(np.float64)
        pairs_R += (inside_RI.sum(1) ** 2 - (inside_RI**2).sum(1)) / 2
    return pairs_R


def _pairs(
    feature_ND: NDArray[np.float32], identity: NDArray, camid: NDArray, domain: NDArray, keep: int
) -> tuple[Pairs, Pairs]:
    """All positive pairs, and the `keep` most similar negative ones; each pair once, within its domain."""
    positive = []
    highest = Pairs(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
    for number in range(domain.max() + 1):
        row = np.flatnonzero(domain == number)
        size = max(1, _BLOCK_ELEMENTS // len(row))
        for start in range(0, len(row), size):
            block, later = row[start : start + size], row[start:]
            similarity_BL = feature_ND[block] @ feature_ND[later].T
            is_new_BL = np.arange(len(later)) > np.arange(len(block))[:, None]
            same_BL = identity[block, None] == identity[later]
            other_camera_BL = camid[block, None] != camid[later]
            of_block = similarity_BL, identity[block], identity[later]
            positive.append(_pick(is_new_BL & same_BL & other_camera_BL, *of_block))
            candidate_BL = is_new_BL & ~same_BL
            if len(highest.similarity) == keep:
                # Only what is above the lowest one kept can take its place.
                candidate_BL &= similarity_BL > highest.similarity.min()
            highest = _concatenate([highest, _pick(candidate_BL, *of_block)])
            best = np.argsort(-highest.similarity, kind="stable")[:keep]
            highest = Pairs._make(column[best] for column in highest)
    return _concatenate(positive), highest


def _pick(chosen_BL: NDArray, similarity_BL: NDArray, first_B: NDArray, second_L: NDArray) -> Pairs:
    first, second = np.nonzero(chosen_BL)
    return Pairs(similarity_BL[first, second], first_B[first], second_L[second])


def _concatenate(parts: Sequence[Pairs]) -> Pairs:
    return Pairs._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _interval(part_R: NDArray, whole_R: NDArray) -> list[float]:
    """The middle 95 % of the shares, of the resamples that have any pair."""
    some_R = whole_R > 0
    return np.quantile(part_R[some_R] / whole_R[some_R], [0.025, 0.975]).tolist()
