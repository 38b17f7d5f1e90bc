"""A trained run or a file of weights, loaded for evaluation, search, export or a report."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from metabin_jax.evaluation.protocol import CameraPolicy
from metabin_jax.models import ReID, create, load_torch
from metabin_jax.models.weights.recognition import Net, recognise
from metabin_jax.models.weights.torch_files import Arrays
from metabin_jax.runtime.compilation import use_compilation_cache
from metabin_jax.runtime.errors import UserError
from metabin_jax.training.build import checked, model_of
from metabin_jax.training.checkpoint import Checkpoints
from metabin_jax.training.config import metabin
from metabin_jax.training.workdir import read_config

SIZE = 256, 128  # height and width that most nets for people take


@dataclasses.dataclass(frozen=True)
class Trained:
    """The selected checkpoint of a run, or the net of a file of weights.

    workdir: of the run, or the file. step: of the checkpoint; 0 for a file. source_mAP: the checkpoint's score on
    held-out source identities, None if none were held out.
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


def load(
    model: str | Path, config: ConfigDict | None = None, dtype: str = "", size: tuple[int, int] | None = None
) -> Trained:
    """The selected checkpoint of a run, or the net of a file of weights, with its own config or a changed one.

    model: the run's workdir, or a file that `models.load_torch` takes. dtype: in which the model computes; by default
    that of the config. size: as `own_config` takes it, where no config is given.
    Raises UserError or FileNotFoundError if there is no run and no checkpoint, or the file is of no known net.
    """
    use_compilation_cache()
    workdir = Path(model).expanduser().absolute()
    config = checked(own_config(workdir, size) if config is None else config)
    config.model.dtype = dtype or config.model.dtype
    if workdir.is_file():
        return Trained(workdir, config, 0, None, *_net_of(workdir, config))
    with Checkpoints(workdir, scored=config.selection == "source_val", create=False) as checkpoints:
        step = checkpoints.selected_step()
        score, variables = checkpoints.score(step), checkpoints.restore_variables(step)
    return Trained(workdir, config, step, score, model_of(config, variables), variables)


def own_config(model: str | Path, size: tuple[int, int] | None = None) -> ConfigDict:
    """The config of the run in a workdir or, for a file of weights, the defaults with the net that it holds.

    size: (height, width) of the images that a file's net takes, by default SIZE. Raises UserError for a size of a run,
    FileNotFoundError if there is nothing at the path, and as `read_config` and `recognise`.
    """
    path = Path(model).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name a workdir of metabin train or a file of weights")
    if not path.is_file():
        config = read_config(path)
        if size:
            pixels = f"{config.data.height}x{config.data.width}"
            raise UserError(f"a size is for files of weights: the run in {path} takes {pixels} pixels")
        return config
    net, _ = _recognised(path, path.stat().st_mtime_ns)
    config = metabin()
    config.method, config.init = net.norm, str(path.absolute())
    config.model.name, config.model.dtype = net.name, "float32"
    config.data.height, config.data.width = size or SIZE
    return config


@functools.lru_cache(maxsize=1)
def _recognised(file: Path, changed: int) -> tuple[Net, Arrays]:
    """A command asks for the net, for its config and for its weights. changed: the file's time, for the cache alone."""
    return recognise(file)


def beside(model: str | Path, name: str) -> Path:
    """Where a result of this name belongs: in the workdir, or beside the file of weights under a name of its own."""
    path = Path(model).expanduser()
    return path.with_name(f"{path.stem}-{name}") if path.is_file() else path / name


def _net_of(file: Path, config: ConfigDict) -> tuple[ReID, dict[str, Any]]:
    """The model of a file of weights, and its variables."""
    net, arrays = _recognised(file, file.stat().st_mtime_ns)
    dtype = jnp.dtype(config.model.dtype)
    model = create(net.name, net.num_classes, net.norm, dtype, neck=net.neck, **net.settings)
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, *SIZE, 3)), train=False), jax.random.key(0))
    variables, _ = load_torch(arrays, shapes)
    return model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype) if _is_shape(leaf) else leaf, variables)


def _is_shape(leaf: Any) -> bool:
    """Of a classifier that the file lacks, which no embedding needs."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _digest(variables: dict[str, Any]) -> str:
    """Identifies the weights, whatever folder they are in."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):  # in the order of sorted keys
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
