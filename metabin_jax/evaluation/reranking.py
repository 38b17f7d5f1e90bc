"""What is done to features or distances between the net and the metrics: re-ranking and query expansion.

Neighbours are ordered by cosine distance; equal distances keep the order of the images.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metabin_jax.evaluation.inputs import check_features
from metabin_jax.evaluation.metrics import distance_blocks, unit_length


class _Rows(NamedTuple):
    """A sparse matrix: row n holds `weight` in the columns `column`, both from start[n] to start[n + 1]."""

    start: NDArray[np.int64]
    column: NDArray[np.int64]
    weight: NDArray[np.floating]

    def of(self, row: int) -> tuple[NDArray, NDArray]:
        part = slice(self.start[row], self.start[row + 1])
        return self.column[part], self.weight[part]

    @classmethod
    def join(cls, rows: list[tuple[NDArray, NDArray]]) -> "_Rows":
        columns, weights = zip(*rows, strict=True)
        return cls(np.cumsum([0, *map(len, columns)]), np.concatenate(columns), np.concatenate(weights))


def rerank(
    query_QD: ArrayLike, gallery_GD: ArrayLike, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> NDArray[np.floating]:
    """Distances [Q, G] by k-reciprocal encoding (Zhong et al., CVPR 2017, arXiv 1701.08398), for `rank_metrics`.

    All is done among the N = Q + G images together, the queries first. d(i, j) is the squared Euclidean distance of
    features of length one, divided by the largest of i's. N(i, k) is i itself and its k nearest others.

        R(i, k)  = {j in N(i, k): i in N(j, k)}
        R*(i)    = R(i, k1) and every R(j, k1 / 2), j in R(i, k1), more than two thirds of which lie in R(i, k1)
        V(i, j)  = exp(-d(i, j)) for j in R*(i), else 0, divided by its sum over j;
                   then its mean over i and its k2 - 1 nearest others
        d_J(q, g) = 1 - sum_j min(V(q, j), V(g, j)) / sum_j max(V(q, j), V(g, j))
        result   = (1 - lambda_value) d_J + lambda_value d(q, g)

    Published numbers rest on the authors' code, so two things are as there and not as in the paper's text: the
    division by the sum, and MORE than two thirds (the text: or equal). Beyond the result it holds a copy of the
    features, a block of distances, and the k1 neighbours and non-zero weights of each image.

    Args:
      query_QD, gallery_GD: features, any real dtype, of finite values; the result is float32, or float64 where
        they are.
      k1, k2: at least 1; k1 / 2 is rounded, halves to the even number, and a k beyond N means all images.
      lambda_value: from 0 to 1.

    Raises:
      ValueError: shapes disagree, there is no query or no gallery, a feature is not finite, a setting is out of range.
    """
    query_QD, gallery_GD = check_features(query_QD, gallery_GD)
    if min(len(query_QD), len(gallery_GD)) == 0:
        raise ValueError("query_QD and gallery_GD must hold one feature or more.")
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1 and k2 must be at least 1, not {k1} and {k2}.")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value must be from 0 to 1, not {lambda_value}.")

    image_ND = np.concatenate([query_QD, gallery_GD])
    neighbour_NK, farthest_N = _neighbours(image_ND, max(k1 + 1, k2))
    weight = _weights(image_ND, neighbour_NK, farthest_N, k1)
    weight = _Rows.join([_mean_row(weight, neighbour_K[:k2]) for neighbour_K in neighbour_NK])

    distance_QG = np.empty((len(query_QD), len(gallery_GD)), farthest_N.dtype)
    for rows, original_BG in distance_blocks(query_QD, gallery_GD):
        distance_QG[rows] = lambda_value * original_BG / farthest_N[rows, None]
    _add_jaccard(distance_QG, weight, 1 - lambda_value)
    return distance_QG


def query_expansion(
    query_QD: ArrayLike, gallery_GD: ArrayLike, k: int = 10, alpha: float = 3.0
) -> NDArray[np.floating]:
    """Queries [Q, D] of length one, each moved towards its k nearest gallery images.

    alpha-weighted query expansion (Radenovic et al., TPAMI 2019, arXiv 1711.02512): the sum of the query and of its
    k nearest, each times max(cosine similarity, 0)^alpha, at length one. alpha = 0 is the plain average.

    Args:
      query_QD, gallery_GD: features, any real dtype, of finite values; the result is float32, or float64 where
        they are.
      k: at least 1; beyond G it means the whole gallery.
      alpha: 0 or more.

    Raises:
      ValueError: shapes disagree, a feature is not finite, k or alpha is out of range.
    """
    query_QD, gallery_GD = check_features(query_QD, gallery_GD)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be 0 or more, not {alpha}.")
    dtype = np.result_type(query_QD, gallery_GD, np.float32)
    expanded_QD = unit_length(query_QD.astype(dtype, copy=False))
    for rows, distance_BG in distance_blocks(query_QD, gallery_GD):
        for expanded_D, distance_G in zip(expanded_QD[rows], distance_BG, strict=True):
            column_K = _nearest(distance_G, k)
            weight_K = np.maximum(1 - distance_G[column_K], 0) ** alpha
            expanded_D += weight_K @ unit_length(gallery_GD[column_K].astype(dtype, copy=False))
    return unit_length(expanded_QD)


def _nearest(distance_G: NDArray, k: int) -> NDArray[np.int64]:
    """The columns of the k smallest distances, increasing; equal distances keep their order."""
    if k < len(distance_G):
        # All that are as near as the k-th: which of them come first is for the stable sort to say.
        column_C = np.flatnonzero(distance_G <= np.partition(distance_G, k - 1)[k - 1])
    else:
        column_C = np.arange(len(distance_G))
    return column_C[np.argsort(distance_G[column_C], kind="stable")][:k]


def _neighbours(image_ND: NDArray, count: int) -> tuple[NDArray[np.int64], NDArray]:
    """Each image and its nearest others, `count` in all [N, K], and the distance of its farthest [N], 1 for 0."""
    num_image = len(image_ND)
    neighbour_NK = np.empty((num_image, min(count, num_image)), np.int64)
    farthest_N = np.empty(num_image, np.result_type(image_ND, np.float32))
    for rows, distance_BN in distance_blocks(image_ND, image_ND):
        for image, distance_N in enumerate(distance_BN, rows.start):
            farthest_N[image] = distance_N.max()
            # An image is its own nearest, whatever rounding or a copy of it says.
            distance_N[image] = -np.inf
            neighbour_NK[image] = _nearest(distance_N, neighbour_NK.shape[1])
    # Where all images are copies of one, what is left is rounding.
    farthest_N[farthest_N < 16 * np.finfo(farthest_N.dtype).eps] = 1
    return neighbour_NK, farthest_N


def _reciprocal(neighbour_NK: NDArray) -> NDArray[np.bool_]:
    """[n, k]: is image n among the neighbours of its own neighbour k."""
    mutual_NK = np.empty(neighbour_NK.shape, bool)
    for image, neighbour_K in enumerate(neighbour_NK):
        mutual_NK[image] = (neighbour_NK[neighbour_K] == image).any(axis=1)
    return mutual_NK


def _weights(image_ND: NDArray, neighbour_NK: NDArray, farthest_N: NDArray, k1: int) -> _Rows:
    """V before its mean over neighbours: exp(-d) over the expanded k-reciprocal sets, each row of sum 1."""
    whole_NK, half_NH = neighbour_NK[:, : k1 + 1], neighbour_NK[:, : round(k1 / 2) + 1]
    mutual_NK, mutual_NH = _reciprocal(whole_NK), _reciprocal(half_NH)
    rows = []
    for image in range(len(image_ND)):
        member_R = whole_NK[image, mutual_NK[image]]
        half_RH, in_half_RH = half_NH[member_R], mutual_NH[member_R]
        overlap_R = (np.isin(half_RH, member_R) & in_half_RH).sum(axis=1)
        taken_R1 = (3 * overlap_R > 2 * in_half_RH.sum(axis=1))[:, None]
        column = np.union1d(member_R, half_RH[in_half_RH & taken_R1])
        # On the host: so few distances, and each time another number of them, are no work for the device.
        image_1D, column_CD = (unit_length(image_ND[chosen].astype(farthest_N.dtype)) for chosen in ([image], column))
        weight_C = np.exp(-(1 - (image_1D @ column_CD.T)[0]) / farthest_N[image])
        rows.append((column, weight_C / weight_C.sum()))
    return _Rows.join(rows)


def _mean_row(weight: _Rows, row_K: NDArray) -> tuple[NDArray, NDArray]:
    """The mean of these rows, as columns and weights."""
    parts = [weight.of(row) for row in row_K.tolist()]
    column, place = np.unique(np.concatenate([column for column, _ in parts]), return_inverse=True)
    total = np.bincount(place, weights=np.concatenate([value for _, value in parts]))
    return column, (total / len(row_K)).astype(weight.weight.dtype)


def _add_jaccard(distance_QG: NDArray, weight: _Rows, factor: float) -> None:
    """Adds factor times the Jaccard distance, in place."""
    num_query, num_gallery = distance_QG.shape
    total_N = np.add.reduceat(weight.weight, weight.start[:-1])
    # By column: only gallery images with a weight where the query has one share anything with it.
    first = weight.start[num_query]
    order = np.argsort(weight.column[first:], kind="stable")
    column, value = weight.column[first:][order], weight.weight[first:][order]
    row = np.repeat(np.arange(num_gallery), np.diff(weight.start[num_query:]))[order]
    start = np.searchsorted(column, np.arange(num_query + num_gallery + 1))
    for query in range(num_query):
        columns, values = weight.of(query)
        entry = np.concatenate([np.arange(start[c], start[c + 1]) for c in columns.tolist()])
        shared = np.minimum(value[entry], np.repeat(values, start[columns + 1] - start[columns]))
        shared_G = np.bincount(row[entry], weights=shared, minlength=num_gallery)
        distance_QG[query] += factor * (1 - shared_G / (total_N[query] + total_N[num_query:] - shared_G))
