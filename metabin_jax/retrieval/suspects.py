"""Labels that are likely wrong, found by a trained net: neighbours that disagree, identities like two, copies."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metabin_jax.retrieval.features import Features
from metabin_jax.retrieval.search import nearest

NEIGHBOURS = 5  # of which all but one must be of one other identity
COPY = 0.9995  # cosine similarity from which two images are taken for copies
PART = 3  # images that each half of a double identity must have


# What the two images of a suspect say: their own identities, `own` and `other`.
WORDS = {
    "copy": "labelled {own}, but nearly the same image is labelled {other}",
    "neighbours": "labelled {own}, but its nearest images are labelled {other}",
    "two people": "{own} may be two people: these two images of it differ as two people do",
}


class Suspect(NamedTuple):
    """An image whose label is doubtful, and the image that says so; rows of the features. reason: one of WORDS."""

    reason: str
    row: int
    other: int
    similarity: float


def suspects(features: Features) -> list[Suspect]:
    """Doubtful labels, domain by domain, in the order of the images within each reason.

    - "copy": the image is nearly the same as one of another identity.
    - "neighbours": all but one or all of its NEIGHBOURS nearest images are of one other identity, none of its own.
    - "two people": an identity falls into two parts that are as different as two identities are.
    """
    found: list[Suspect] = []
    for domain in dict.fromkeys(features.domain.tolist()):
        row = np.flatnonzero((features.domain == domain) & (features.pid != ""))
        if len(set(features.pid[row].tolist())) > 1:
            own = features.feature[row], features.pid[row]
            found += [suspect._replace(row=int(row[suspect.row]), other=int(row[suspect.other]))
                      for suspect in (*_by_neighbours(*own), *_double(*own))]  # fmt: skip
    return sorted(found, key=lambda suspect: suspect.reason)


def _by_neighbours(feature_ND: NDArray[np.float32], pid_N: NDArray) -> Iterator[Suspect]:
    row_NK, similarity_NK = nearest(feature_ND, feature_ND, NEIGHBOURS + 1)
    for row, (others, similarities) in enumerate(zip(row_NK, similarity_NK, strict=True)):
        kept = np.flatnonzero(others != row)[:NEIGHBOURS]
        others, similarities = others[kept], similarities[kept]
        names, counts = np.unique(pid_N[others], return_counts=True)
        if pid_N[others[0]] != pid_N[row] and similarities[0] >= COPY:
            yield Suspect("copy", row, int(others[0]), float(similarities[0]))
        elif pid_N[row] not in names and counts.max() >= NEIGHBOURS - 1 and (pid_N == pid_N[row]).sum() > 1:
            first = int(np.flatnonzero(pid_N[others] == names[counts.argmax()])[0])
            yield Suspect("neighbours", row, int(others[first]), float(similarities[first]))


def _double(feature_ND: NDArray[np.float32], pid_N: NDArray) -> Iterator[Suspect]:
    """The parts lie on the two sides of the mean along the first principal component."""
    names, number_N = np.unique(pid_N, return_inverse=True)
    sum_MD = np.zeros((len(names), feature_ND.shape[1]))
    np.add.at(sum_MD, number_N, feature_ND.astype(np.float64))
    count_M = np.bincount(number_N)
    pairs = len(pid_N) ** 2 - (count_M**2).sum()
    of_two_people = ((sum_MD.sum(0) ** 2).sum() - (sum_MD**2).sum()) / pairs
    for name in np.flatnonzero(count_M >= 2 * PART):
        row = np.flatnonzero(number_N == name)
        own_ND = feature_ND[row].astype(np.float64)
        side_N = (own_ND - own_ND.mean(0)) @ np.linalg.svd(own_ND - own_ND.mean(0), full_matrices=False)[2][0] > 0
        if min(side_N.sum(), (~side_N).sum()) < PART:
            continue
        between = own_ND[side_N] @ own_ND[~side_N].T
        if between.mean() <= of_two_people:
            first, second = np.unravel_index(between.argmin(), between.shape)
            yield Suspect("two people", int(row[side_N][first]), int(row[~side_N][second]), float(between.min()))
