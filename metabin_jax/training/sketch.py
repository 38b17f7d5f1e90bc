"""A training without its data: what a config will train, in shapes alone."""

from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from metabin_jax.data.dataset import TrainingSet
from metabin_jax.data.pipeline import RawBatch, StepBatches
from metabin_jax.runtime.errors import UserError
from metabin_jax.training import config as configuration
from metabin_jax.training.build import Run, build


def variants(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Name and config in bfloat16 and float32, each with the first-order and the exact meta-gradient if it has one."""
    for dtype in ("bfloat16", "float32"):
        for first_order in (True, False) if config.method == "metabin" else (True,):
            variant = config.copy_and_resolve_references()
            variant.model.dtype, variant.meta.first_order = dtype, first_order
            order = "first order" if first_order else "exact"
            yield f"{dtype}, {order}" if config.method == "metabin" else dtype, variant


def sketch(config: ConfigDict, num_ids: int, num_domains: int = 5) -> Run:
    """The run of a config without its data: `num_ids` identities over `num_domains` domains, or over those it names.

    Raises UserError for a config that cannot work.
    """
    if min(num_ids, num_domains) < 1:
        raise UserError(f"there must be identities and domains, got {num_ids} and {num_domains}")
    config = config.copy_and_resolve_references()
    config.data.source = "synthetic"  # the check then looks for no files
    configuration.check(config)
    if config.data.domain_by == "source" and config.data.train_domains:
        num_domains = len(config.data.train_domains)
    pid = np.repeat(np.arange(num_ids), config.batch.images_per_id)
    names = config.data.train_domains or tuple(f"domain {number}" for number in range(num_domains))
    return build(config, TrainingSet([], names, pid, pid % num_domains, {}))


def batch_shapes(run: Run) -> StepBatches:
    """The shapes of one step's batches: X_B and, with meta-learning, X_S and X_T."""
    height, width = run.config.data.height, run.config.data.width

    def shapes(row_N: np.ndarray) -> RawBatch:
        image, label = np.empty((len(row_N), height, width, 3), np.uint8), np.empty(len(row_N), np.int32)
        return RawBatch(image, label, label)

    return jax.eval_shape(lambda batches: batches, StepBatches(*map(shapes, run.rows(0))))


def describe(run: Run) -> str:
    """Method, net and sizes of a sketch, in a few words."""
    config, images = run.config, " + ".join(str(len(row_N)) for row_N in run.rows(0))
    return (
        f"{config.method}, {config.model.name}, {config.data.height} x {config.data.width}, {images} images a step, "
        f"{run.data.num_ids:,} identities"
    )
