"""The threshold on similarity above which two images show one person, with its error rates, from labelled images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metabin_jax.evaluation.inputs import Labels
from metabin_jax.evaluation.thresholds import Pairs, allowed_accepts, join_pairs, percent, scored_pairs
from metabin_jax.retrieval.features import Features
from metabin_jax.runtime.errors import UserError

RESAMPLES = 1000


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
            low_tpr, high_tpr = map(percent, self.tpr_interval)
            tpr = f"{percent(self.tpr)} (95 % interval {low_tpr} to {high_tpr})"
        return (
            f"threshold {self.threshold:.4f}, from {self.images:,} images of {self.identities:,} identities"
            f" ({self.unlabelled:,} without labels left out)\n"
            f"pairs of different people above it: {self.far:.4g} of {self.negative_pairs:,}"
            f" (95 % interval {low:.3g} to {high:.3g})\n"
            f"pairs of one person above it: {tpr} of {self.positive_pairs:,}"
        )


def calibrate(features: Features, far: float) -> Calibration:
    """Measures on every pair of labelled images of one domain, each pair once.

    Pairs of one identity from one camera are left out, as in `evaluation.verification`, unless no camera is known; so
    are pairs across domains, whose pids have nothing to do with each other.

    Raises:
      ValueError: far is out of range; no image is labelled; there are fewer negative pairs than 1 / far.
    """
    if not 0 < far < 1:
        raise ValueError(f"far must be above 0 and below 1, not {far}.")
    camid = features.camid if (features.camid >= 0).any() else np.arange(len(features))
    row = np.flatnonzero((features.pid != "") & (camid >= 0))
    if not len(row):
        raise UserError(
            "no image has an identity: name the files <pid>_c<camera>..., or list them in a CSV with the columns"
            " path,pid,camid; metabin index makes one."
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
    positive, highest = _pairs(features.feature[row], identity, camid[row], domain, allowed + 1)
    threshold = highest.score_P.min()
    hit = positive.score_P > threshold
    accept = highest.score_P > threshold

    # Each resample gives every identity the number of times it was drawn; identities are ordered by domain.
    rng = np.random.default_rng(0)
    drawn = (rng.multinomial(size, np.full(size, 1 / size), RESAMPLES) for size in np.bincount(domain_of_identity))
    weight_RI = np.concatenate([*drawn], axis=1)
    first, second = identity[highest.query_P[accept]], identity[highest.gallery_P[accept]]
    accepts_R = np.array([(weight_I[first] * weight_I[second]).sum() for weight_I in weight_RI])
    negatives_R = _negative_pairs(weight_RI * images_of_identity, domain_of_identity)
    count = len(images_of_identity)
    person_P = identity[positive.query_P]
    hits_R = weight_RI @ np.bincount(person_P[hit], minlength=count)
    positives_R = weight_RI @ np.bincount(person_P, minlength=count)
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
    images_RI = images_RI.astype(np.float64)
    images_RD = images_RI @ (domain_I[:, None] == np.arange(domain_I[-1] + 1))
    return ((images_RD**2).sum(1) - (images_RI**2).sum(1)) / 2


def _pairs(
    feature_ND: NDArray[np.float32], identity: NDArray, camid: NDArray, domain: NDArray, keep: int
) -> tuple[Pairs, Pairs]:
    """All positive pairs, and the `keep` most similar negative ones; each pair once, within its domain."""
    of_domains = []
    for number in range(domain.max() + 1):
        row = np.flatnonzero(domain == number)
        labels = Labels(identity[row], identity[row], camid[row], camid[row])
        found = scored_pairs(feature_ND[row], feature_ND[row], labels, keep, once=True)
        of_domains.append([Pairs(score_P, row[query_P], row[gallery_P]) for score_P, query_P, gallery_P in found[:2]])
    positive, highest = zip(*of_domains, strict=True)
    return join_pairs(positive), join_pairs(highest, keep)


def _interval(part_R: NDArray, whole_R: NDArray) -> list[float]:
    """The middle 95 % of the shares, of the resamples that have any pair."""
    some_R = whole_R > 0
    return np.quantile(part_R[some_R] / whole_R[some_R], [0.025, 0.975]).tolist()
