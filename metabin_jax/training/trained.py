"""A trained run, loaded for evaluation, search, export or a report."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from metabin_jax.evaluation.protocol import CameraPolicy
from metabin_jax.models import ReID
from metabin_jax.runtime.compilation import use_compilation_cache
from metabin_jax.training.build import checked, model_of
from metabin_jax.training.checkpoint import Checkpoints
from metabin_jax.training.workdir import read_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """The selected checkpoint of a run.

    step: of that checkpoint. source_mAP: its score on held-out source identities, None if none were held out.
    """

    workdir: Path
    config: ConfigDict
    step: int
    source_mAP: float | None
    model: ReID
    variables: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images it takes, in pixels."""
        return self.config.data.height, self.config.data.width

    @property
    def batch_size(self) -> int:
        """Images embedded at a time."""
        return self.config.eval.batch_size

    @property
    def policy(self) -> CameraPolicy:
        """Which gallery images a query is compared with, see `evaluation.query_gallery`."""
        return self.config.eval.policy

    @functools.cached_property
    def made_by(self) -> dict[str, Any]:
        """The label of this net's features, see `retrieval.features.Features`."""
        return {
            "run": str(self.workdir),
            "step": self.step,
            "model": self.config.model.name,
            "method": self.config.method,
            "height": self.config.data.height,
            "width": self.config.data.width,
            "weights": _digest(self.variables),
        }


def load(workdir: str | Path, config: ConfigDict | None = None, dtype: str = "") -> Trained:
    """The selected checkpoint of the run in `workdir`, with the run's config or a changed one.

    dtype: in which the model computes; by default that of the config.
    Raises UserError or FileNotFoundError if there is no run or no checkpoint.
    """
    use_compilation_cache()
    workdir = Path(workdir).expanduser().absolute()
    config = checked(read_config(workdir) if config is None else config)
    config.model.dtype = dtype or config.model.dtype
    with Checkpoints(workdir, scored=config.selection == "source_val", create=False) as checkpoints:
        step = checkpoints.selected_step()
        score, variables = checkpoints.score(step), checkpoints.restore_variables(step)
    return Trained(workdir, config, step, score, model_of(config, variables), variables)


def _digest(variables: dict[str, Any]) -> str:
    """Identifies the weights, whatever folder they are in."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):  # in the order of sorted keys
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
