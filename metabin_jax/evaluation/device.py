"""What an evaluation computes on the device: distances and ranks, in blocks of fixed shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

# Columns of each row whose places are counted in one call.
_COUNTED = 32


@functools.partial(jax.jit, static_argnames="metric")
def distance_tile(query_BD: jax.Array, gallery_CD: jax.Array, metric: str) -> jax.Array:
    """Distances [B, C] of features of one floating dtype, as `metrics.distance` defines them.

    Queries are made unit length, but the product is divided by the gallery's lengths: as a gallery is gone through once
    for every block of queries, that is less work. Full precision, because GPUs would round features to TF32.
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


@functools.partial(jax.jit, donate_argnums=0)
def write_tile(distance_BG: jax.Array, tile_BC: jax.Array, start: jax.Array, num_gallery: jax.Array) -> jax.Array:
    """`distance_BG` with the tile from column `start` on, in place; infinite beyond `num_gallery`."""
    column_1C = start + jnp.arange(tile_BC.shape[1], dtype=jnp.int32)[None, :]
    tile_BC = jnp.where(column_1C < num_gallery, tile_BC, jnp.inf)
    return jax.lax.dynamic_update_slice_in_dim(distance_BG, tile_BC, start, axis=1)


@jax.jit
def count_places(distance_BG: jax.Array, column_BM: jax.Array) -> jax.Array:
    """int32 [B, M]: the places, from 1, of these columns in the stable order of each row.

    A pass over the distances for each of the M, which adds no array of their size.
    """
    column_1G = jnp.arange(distance_BG.shape[1], dtype=jnp.int32)[None, :]

    def one(column_B: jax.Array) -> jax.Array:
        column_B1 = column_B[:, None]
        own_B1 = jnp.take_along_axis(distance_BG, column_B1, axis=1)
        ahead_BG = (distance_BG < own_B1) | ((distance_BG == own_B1) & (column_1G <= column_B1))
        return ahead_BG.sum(1, dtype=jnp.int32)

    return jax.lax.map(one, column_BM.T).T


def device_places(distance_BG: jax.Array, columns: list[NDArray]) -> list[NDArray]:
    """The places, from 1, of the columns listed for each row in the stable order of the row.

    There may be more rows than lists. _COUNTED columns are counted at a time: one trace serves any number of them.
    """
    slabs = max(1, -(-max(map(len, columns)) // _COUNTED))
    column_BM = np.zeros((len(distance_BG), slabs * _COUNTED), np.int32)
    for row, column_S in enumerate(columns):
        column_BM[row, : len(column_S)] = column_S
    counts = [count_places(distance_BG, slab_BM) for slab_BM in np.split(column_BM, slabs, axis=1)]
    place_BM = np.concatenate([np.asarray(count_BM) for count_BM in counts], axis=1)
    return [place_M[: len(column_S)] for place_M, column_S in zip(place_BM, columns, strict=False)]


@jax.jit
def has_nan(distance_BG: jax.Array) -> jax.Array:
    """bool [B]: is any distance of the row NaN."""
    return jnp.isnan(distance_BG).any(1)
