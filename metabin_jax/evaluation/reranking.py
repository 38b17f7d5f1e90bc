"""What is done to features or distances between the net and the metrics: re-ranking and query expansion.

Neighbours are ordered by cosine distance; equal distances keep the order of the images.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metabin_jax.evaluation.distances import Blocks, distance_blocks, unit_length
from metabin_jax.evaluation.inputs import check_features
from metabin_jax.evaluation.ranking import rank

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Images whose expanded neighbour sets are found at a time.
_SET_ROWS = 1024


def rerank(
    query_QD: ArrayLike, gallery_GD: ArrayLike | None = None, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> NDArray[np.floating]:
    """Distances [Q, G] by k-reciprocal encoding (Zhong et al., CVPR 2017, arXiv 1701.08398), for `rank_metrics`.

    All is done among the N = Q + G images together, the queries first, or among the N = Q images if the queries are the
    gallery: a copy of each would take the place of a neighbour. d(i, j) is the squared Euclidean distance of
    features of length one, divided by the largest of i's. N(i, k) is i itself and its k nearest others.

        R(i, k)  = {j in N(i, k): i in N(j, k)}
        R*(i)    = R(i, k1) and every R(j, k1 / 2), j in R(i, k1), more than two thirds of which lie in R(i, k1)
        V(i, j)  = exp(-d(i, j)) for j in R*(i), else 0, divided by its sum over j;
                   then its mean over i and its k2 - 1 nearest others
        d_J(q, g) = 1 - sum_j min(V(q, j), V(g, j)) / sum_j max(V(q, j), V(g, j))
        result   = (1 - lambda_value) d_J + lambda_value d(q, g)

    Published numbers come from the authors' code, which differs from the paper's text in two things. Both are as in the
    code here: the division by the sum, and MORE than two thirds (the text: or equal). Beyond the result it holds a copy
    of the features, a block of distances, and the k1 neighbours and non-zero weights of each image.

    Args:
      query_QD, gallery_GD: features, any real dtype, of finite values; the result is float32, or float64 where
        they are. gallery_GD is None if the queries are the gallery, too; the result is then [Q, Q].
      k1, k2: at least 1; k1 / 2 is rounded, halves to the even number, and a k beyond N means all images.
      lambda_value: from 0 to 1.

    Raises:
      ValueError: shapes disagree, there is no query or no gallery, a feature is not finite, a setting is out of range.
    """
    is_one_set = gallery_GD is None
    query_QD, gallery_GD = check_features(query_QD, query_QD if gallery_GD is None else gallery_GD)
    if min(len(query_QD), len(gallery_GD)) == 0:
        raise ValueError("query_QD and gallery_GD must hold one feature or more.")
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1 and k2 must be at least 1, not {k1} and {k2}.")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value must be from 0 to 1, not {lambda_value}.")

    image_ND = query_QD if is_one_set else np.concatenate([query_QD, gallery_GD])
    neighbour_NK, farthest_N = _neighbours(image_ND, max(k1 + 1, k2))
    weight_NN = _weights(image_ND, neighbour_NK, farthest_N, k1)
    nearest_NK = neighbour_NK[:, :k2]
    weight_NN = _rows_of(nearest_NK, np.full(nearest_NK.shape, 1 / nearest_NK.shape[1], farthest_N.dtype)) @ weight_NN

    distance_QG = np.empty((len(query_QD), len(gallery_GD)), farthest_N.dtype)
    for rows, original_BG in distance_blocks(query_QD, gallery_GD):
        distance_QG[rows] = lambda_value * original_BG / farthest_N[rows, None]
    _add_jaccard(distance_QG, weight_NN[: len(query_QD)], weight_NN[-len(gallery_GD) :], 1 - lambda_value)
    return distance_QG


def query_expansion(
    query_QD: ArrayLike, gallery_GD: ArrayLike | None = None, k: int = 10, alpha: float = 3.0
) -> NDArray[np.floating]:
    """Queries [Q, D] of length one, each moved towards its k nearest gallery images.

    alpha-weighted query expansion (Radenovic et al., TPAMI 2019, arXiv 1711.02512): the sum of the query and of its
    k nearest, each times max(cosine similarity, 0)^alpha, at length one. alpha = 0 is the plain average.

    Args:
      query_QD, gallery_GD: features, any real dtype, of finite values; the result is float32, or float64 where
        they are. gallery_GD is None if the queries are the gallery, too: the nearest are then those of the others.
      k: at least 1; beyond G it means the whole gallery.
      alpha: 0 or more.

    Raises:
      ValueError: shapes disagree, a feature is not finite, k or alpha is out of range.
    """
    is_one_set = gallery_GD is None
    query_QD, gallery_GD = check_features(query_QD, query_QD if gallery_GD is None else gallery_GD)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be 0 or more, not {alpha}.")
    dtype = np.result_type(query_QD, gallery_GD, np.float32)
    expanded_QD = unit_length(query_QD.astype(dtype, copy=False))
    if is_one_set and (k := min(k, len(query_QD) - 1)) < 1:
        return expanded_QD
    blocks = _among(query_QD, np.inf) if is_one_set else distance_blocks(query_QD, gallery_GD)
    ranking = rank(blocks, nearest=k)
    weight_QK = np.maximum(1 - ranking.distance_QK, 0) ** alpha
    for expanded_D, column_K, weight_K in zip(expanded_QD, ranking.nearest_QK, weight_QK, strict=True):
        expanded_D += weight_K @ unit_length(gallery_GD[column_K].astype(dtype, copy=False))
    return unit_length(expanded_QD)


def _among(image_ND: NDArray, own: float) -> Blocks:
    """The blocks of distances among images, with `own` as that of each image to itself."""
    for rows, distance_BN in distance_blocks(image_ND, image_ND):
        np.fill_diagonal(distance_BN[:, rows], own)
        yield rows, distance_BN


def _neighbours(image_ND: NDArray, count: int) -> tuple[NDArray[np.int64], NDArray]:
    """Each image and its nearest others, `count` in all [N, K], and the distance of its farthest [N], 1 for 0."""
    farthest_N = np.empty(len(image_ND), np.result_type(image_ND, np.float32))

    def self_first() -> Blocks:
        # An image is its own nearest, whatever rounding or a copy of it says.
        for rows, distance_BN in _among(image_ND, -np.inf):
            farthest_N[rows] = distance_BN.max(axis=1)
            yield rows, distance_BN

    neighbour_NK = rank(self_first(), nearest=count).nearest_QK
    # The distances between copies of one image are rounding.
    farthest_N[farthest_N < 16 * np.finfo(farthest_N.dtype).eps] = 1
    return neighbour_NK, farthest_N


def _rows_of(column_NK: NDArray[np.int64], value_NK: NDArray) -> "csr_array":
    """The sparse matrix [N, N] with these values in these columns of its rows."""
    num_image, width = column_NK.shape
    start = np.arange(0, column_NK.size + 1, width)
    from scipy.sparse import csr_array  # late: a search needs none of it

    return csr_array((value_NK.ravel(), column_NK.ravel(), start), shape=(num_image, num_image))


def _reciprocal(neighbour_NK: NDArray[np.int64]) -> "csr_array":
    """int32 [N, N]: 1 where two images are each among the other's neighbours."""
    is_neighbour_NN = _rows_of(neighbour_NK, np.ones(neighbour_NK.shape, np.int32))
    return is_neighbour_NN.multiply(is_neighbour_NN.T).tocsr()


def _weights(image_ND: NDArray, neighbour_NK: NDArray[np.int64], farthest_N: NDArray, k1: int) -> "csr_array":
    """V [N, N] before its mean over neighbours: exp(-d) over the expanded k-reciprocal sets, each row of sum 1."""
    whole_NN, half_NN = _reciprocal(neighbour_NK[:, : k1 + 1]), _reciprocal(neighbour_NK[:, : round(k1 / 2) + 1])
    half_size_N = half_NN.sum(axis=1)
    columns, weights = [], []
    for start in range(0, len(image_ND), _SET_ROWS):
        member_BN = whole_NN[start : start + _SET_ROWS]
        # |R(i, k1) and R(j, k1 / 2)| for j in R(i, k1); half_NN is symmetric.
        taken_BN = (member_BN @ half_NN).multiply(member_BN).tocsr()
        taken_BN.data = (3 * taken_BN.data > 2 * half_size_N[taken_BN.indices]).astype(np.int32)
        taken_BN.eliminate_zeros()
        expanded_BN = (member_BN + taken_BN @ half_NN).tocsr()
        expanded_BN.sort_indices()
        for image, column_C in enumerate(np.split(expanded_BN.indices, expanded_BN.indptr[1:-1]), start):
            # On the host: few distances at a time, and of another number each time, do not pay on the device.
            image_1D, column_CD = (unit_length(image_ND[row].astype(farthest_N.dtype)) for row in ([image], column_C))
            weight_C = np.exp(-(1 - (image_1D @ column_CD.T)[0]) / farthest_N[image])
            columns.append(column_C)
            weights.append(weight_C / weight_C.sum())
    starts = np.cumsum([0, *map(len, columns)])
    from scipy.sparse import csr_array

    return csr_array((np.concatenate(weights), np.concatenate(columns), starts), shape=whole_NN.shape)


def _add_jaccard(distance_QG: NDArray, query_QN: "csr_array", gallery_GN: "csr_array", factor: float) -> None:
    """Adds factor times the Jaccard distance, in place, query by query."""
    total_Q, total_G = query_QN.sum(axis=1), gallery_GN.sum(axis=1)
    gallery_GN = gallery_GN.tocsc()
    for query, (start, stop) in enumerate(zip(query_QN.indptr, query_QN.indptr[1:], strict=False)):
        # Only gallery images with a weight where the query has one share anything with it.
        shared_GC = gallery_GN[:, query_QN.indices[start:stop]]
        weight_S = np.repeat(query_QN.data[start:stop], np.diff(shared_GC.indptr))
        shared_GC.data = np.minimum(shared_GC.data, weight_S)
        shared_G = shared_GC.sum(axis=1)
        distance_QG[query] += factor * (1 - shared_G / (total_Q[query] + total_G - shared_G))
