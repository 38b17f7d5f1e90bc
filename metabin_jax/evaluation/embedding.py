"""Images in, retrieval features out."""

import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from metabin_jax.data.augment import normalise
from metabin_jax.runtime.devices import Placement
from metabin_jax.runtime.platforms import tracing_for

PIXELS = 2**15  # one image of 256 x 128; its maps fit in a core's share of the cache


def _steps(placement: Placement, num_images: int, height: int, width: int) -> int:
    """How many parts of a batch are embedded one after the other.

    On a CPU a part has PIXELS per core, so that a layer's maps are still in the cache when the next layer reads them.
    """
    if _platform(placement) != "cpu" or jax.process_count() > 1:
        return 1
    cores = os.cpu_count() or 1
    return -(-num_images // placement.filled(max(1, cores * PIXELS // (height * width))))


def _platform(placement: Placement) -> str:
    return placement.whole.mesh.devices.flat[0].platform


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _embed_batch(
    model: nn.Module, placement: Placement, steps: int, variables: dict, image_NHWC: jax.Array
) -> jax.Array:
    def embed_part(image_PHWC: jax.Array) -> jax.Array:
        with tracing_for(_platform(placement)):
            outputs: Any = model.apply(variables, normalise(image_PHWC), train=False)
        _, embedding_PD, _ = outputs
        return embedding_PD.astype(jnp.float32)

    # A device's rows are next to each other. Every part has an equal share of them, so that no row changes its device.
    image_PSHWC = image_NHWC.reshape(-1, steps, *image_NHWC.shape[1:])
    embedding_SPD = jax.lax.map(embed_part, image_PSHWC.swapaxes(0, 1))
    embedding_ND = embedding_SPD.swapaxes(0, 1).reshape(len(image_NHWC), -1)
    # Whole on every device, so that every process can read all of it.
    return jax.lax.with_sharding_constraint(embedding_ND, placement.whole)


def embed(
    model: nn.Module,
    variables: dict,
    image_NHWC: NDArray[np.uint8],
    batch_size: int = 64,
    rows: NDArray[np.integer] | None = None,
) -> NDArray[np.float32]:
    """Embeddings [n, D] (the feature after BNNeck, what retrieval uses) in evaluation mode.

    Args:
      model: as `metabin_jax.models.create` returns it.
      variables: its variables.
      image_NHWC: RGB uint8 [n, H, W, 3], in memory or memory-mapped; read one batch at a time.
      rows: embed only these images, in this order.

    Raises:
      ValueError: there are no images, they are not RGB uint8, batch_size is below 1.
    """
    if image_NHWC.ndim != 4 or image_NHWC.shape[3] != 3 or image_NHWC.dtype != np.uint8:
        raise ValueError(
            "images must be RGB uint8 of the shape [n, height, width, 3], "
            f"not {image_NHWC.dtype} {list(image_NHWC.shape)}."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    rows = np.arange(len(image_NHWC)) if rows is None else rows
    if len(rows) == 0:
        raise ValueError("there are no images to embed.")
    batches = (image_NHWC[rows[start : start + batch_size]] for start in range(0, len(rows), batch_size))
    return np.concatenate(list(embed_batches(model, variables, batches, batch_size)))


def embed_batches(
    model: nn.Module, variables: dict, batches: Iterable[NDArray[np.uint8]], batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Embeddings [N, D] of one batch uint8 [N, H, W, 3] after the other, each of `batch_size` images or fewer.

    A batch is filled up with zeros, so that one trace per model and image size serves them all, and cut over all
    devices; several processes give the same batches and get the same embeddings. Two batches are in flight: the device
    never waits for the host, nor does the host run far ahead.
    """
    placement = Placement.over(jax.devices())
    variables = jax.device_put(variables, placement.whole)
    before, num_images = None, 0
    for batch_NHWC in batches:
        steps = _steps(placement, batch_size, *batch_NHWC.shape[1:3])
        missing = steps * placement.filled(-(-batch_size // steps)) - len(batch_NHWC)
        filling = [(0, missing), (0, 0), (0, 0), (0, 0)]
        batch_MHWC = np.pad(batch_NHWC, filling) if missing else batch_NHWC  # np.pad copies even where it adds nothing
        started = _embed_batch(model, placement, steps, variables, placement.put(placement.own(batch_MHWC)))
        if before is not None:
            yield np.asarray(before)[:num_images]
        before, num_images = started, len(batch_NHWC)
    if before is not None:
        yield np.asarray(before)[:num_images]
