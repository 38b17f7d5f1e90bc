"""Distances of queries to a gallery, a block of queries at a time.

The devices of this process compute them in tiles of one shape. Neither the features nor the distances need to fit
there. Each device has its part of the queries.
"""

import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from metabin_jax.runtime.devices import Placement

METRICS = ("cosine", "euclidean")

# The largest temporary array, the float32 distances of a block of queries to the gallery, stays below 256 MB.
_BLOCK_ELEMENTS = 64_000_000

# Gallery rows of a tile.
_CHUNK_ROWS = 8192

Blocks = Iterable[tuple[slice, NDArray]]  # rows of the queries, and their distances [B, G] to the gallery


def distance(query_QD: NDArray, gallery_GD: NDArray, metric: str = "cosine") -> NDArray:
    """Distances [Q, G], float64 for float64 features and float32 otherwise: 1 - cosine, or Euclidean (not squared).

    A feature of length zero has the cosine distance 1 to everything. Raises ValueError for an unknown metric.
    """
    distance_QG = np.empty((len(query_QD), len(gallery_GD)), _dtype(query_QD, gallery_GD))
    for rows, distance_BG in distance_blocks(query_QD, gallery_GD, metric):
        distance_QG[rows] = distance_BG
    return distance_QG


def distance_blocks(query_QD: NDArray, gallery_GD: NDArray, metric: str = "cosine") -> Blocks:
    """`distance` of one block of queries after the other, without another array of the gallery's size [G, D].

    Each block overwrites the one before.
    """
    query_QD, gallery_GD, exponent = _in_range(query_QD, gallery_GD, metric)
    dtype, num_query, num_gallery = _dtype(query_QD, gallery_GD), len(query_QD), len(gallery_GD)
    size = _balanced(num_query, max(1, _BLOCK_ELEMENTS // max(num_gallery, 1)))
    buffer_BG = np.empty((size, num_gallery), dtype)
    for start in range(0, num_query, size):
        rows = slice(start, min(start + size, num_query))
        distance_BG = buffer_BG[: rows.stop - start]
        for columns, tile_BC in _tiles(query_QD[rows], size, gallery_GD, metric, dtype):
            distance_BG[:, columns] = np.asarray(tile_BC)[: len(distance_BG), : columns.stop - columns.start]
        yield rows, np.ldexp(distance_BG, exponent, out=distance_BG) if exponent else distance_BG


def unit_length(feature_ND: NDArray) -> NDArray:
    """The features divided by their lengths; a feature of length zero stays zero."""
    feature_ND = _divided(feature_ND, _exponents(feature_ND))
    length_N1 = np.linalg.norm(feature_ND, axis=1, keepdims=True)
    return feature_ND / np.where(length_N1 == 0, 1, length_N1)


def _exponents(feature_ND: NDArray) -> NDArray[np.int32]:
    """The power of two [N] by which to divide each feature: 0, unless its squares would leave the range of floats."""
    exponent_N = np.zeros(len(feature_ND), np.int32)
    dtype = _dtype(feature_ND, feature_ND)
    widest = 2.0 ** (np.finfo(dtype).maxexp * 2 // 3)
    with np.errstate(over="ignore", under="ignore"):
        square_N = np.einsum("nd,nd->n", feature_ND, feature_ND, dtype=dtype)
    row = np.flatnonzero(~((square_N > 1 / widest) & (square_N < widest)))
    exponent_N[row] = np.frexp(np.abs(feature_ND[row].astype(dtype)).max(axis=1, initial=0))[1]
    return exponent_N


def _divided(feature_ND: NDArray, exponent_N: NDArray[np.int32]) -> NDArray:
    """Features divided by powers of two, which changes no digit; the same array if all are 0."""
    if not exponent_N.any():
        return feature_ND
    return np.ldexp(feature_ND.astype(_dtype(feature_ND, feature_ND), copy=False), -exponent_N[:, None])


def _in_range(query_QD: NDArray, gallery_GD: NDArray, metric: str) -> tuple[NDArray, NDArray, int]:
    """Features whose squares are in the range of floats, and the power of two to multiply their distances by."""
    exponent_Q, exponent_G = _exponents(query_QD), _exponents(gallery_GD)
    common = 0
    if metric == "euclidean" and (exponent_Q.any() or exponent_G.any()):
        common = int(np.frexp(max(np.abs(feature_ND).max(initial=0) for feature_ND in (query_QD, gallery_GD)))[1])
        exponent_Q, exponent_G = (np.full_like(exponent_N, common) for exponent_N in (exponent_Q, exponent_G))
    return _divided(query_QD, exponent_Q), _divided(gallery_GD, exponent_G), common


@functools.partial(jax.jit, static_argnames="metric")
def distance_tile(query_BD: jax.Array, gallery_CD: jax.Array, metric: str) -> jax.Array:
    """Distances [B, C] of features of one floating dtype, as `distance` defines them.

    Queries are made unit length, but the product is divided by the gallery's lengths: every block of queries passes
    over the whole gallery, so that is less work. Full precision, because GPUs would round features to TF32.
    """
    gallery_1C = jnp.square(gallery_CD).sum(1)[None, :]
    if metric == "euclidean":
        squared_BC = jnp.square(query_BD).sum(1)[:, None] + gallery_1C - 2 * _product(query_BD, gallery_CD)
        return jnp.sqrt(jnp.maximum(squared_BC, 0))
    query_B1 = jnp.linalg.norm(query_BD, axis=1, keepdims=True)
    query_BD = query_BD / jnp.where(query_B1 == 0, 1, query_B1)
    return 1 - _product(query_BD, gallery_CD) / jnp.where(gallery_1C == 0, 1, jnp.sqrt(gallery_1C))


def _product(query_BD: jax.Array, gallery_CD: jax.Array) -> jax.Array:
    return jax.lax.dot_general(query_BD, gallery_CD, (((1,), (1,)), ((), ())), precision="highest")


def _tiles(
    query_QD: NDArray, num_rows: int, gallery_GD: NDArray, metric: str, dtype: np.dtype
) -> Iterator[tuple[slice, jax.Array]]:
    """Columns, and the distances [B, C] of the queries to them, both filled up with zero features to one shape."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}.")
    placement = Placement.over(jax.local_devices())
    with jax.enable_x64(dtype == np.float64):
        query_BD = jax.device_put(_filled(query_QD, placement.filled(num_rows), dtype), placement.by_rows)
    size = _balanced(len(gallery_GD), _CHUNK_ROWS)
    before = query_BD
    for start in range(0, len(gallery_GD), size):
        columns = slice(start, min(start + size, len(gallery_GD)))
        with jax.enable_x64(dtype == np.float64):
            gallery_CD = jax.device_put(_filled(gallery_GD[columns], size, dtype), placement.whole)
            tile_BC = distance_tile(query_BD, gallery_CD, metric)
        before.block_until_ready()  # two tiles in flight: more would hold more of the gallery on the device
        before = tile_BC
        yield columns, tile_BC


def _filled(feature_ND: NDArray, size: int, dtype: np.dtype) -> NDArray:
    feature_ND, missing = feature_ND.astype(dtype, copy=False), size - len(feature_ND)
    return np.pad(feature_ND, ((0, missing), (0, 0))) if missing else feature_ND


def _dtype(query_QD: NDArray, gallery_GD: NDArray) -> np.dtype:
    return np.result_type(query_QD, gallery_GD, np.float32)


def _balanced(total: int, most: int) -> int:
    """The size of the fewest parts of at most `most`: equal, so that little is filled up."""
    parts = max(1, -(-total // most))
    return max(1, -(-total // parts))
