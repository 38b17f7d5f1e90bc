"""A run small enough for tests: domains drawn into a folder, a config for them, and a net that compiles quickly."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from metabin_jax.norm import BatchInstanceNorm
from metabin_jax.training import build, evaluate, train
from metabin_jax.training.checkpoint import Checkpoints
from metabin_jax.training.config import metabin

STEPS = 9
DOMAINS = ("east", "north", "south", "west")


def draw_folder(root: Path, domains=DOMAINS, ids=4, cameras=2, per_camera=2) -> Path:
    """32 x 32 images in Market-1501 naming: an identity has its pattern, a domain its tint, an image its noise."""
    for number, domain in enumerate(domains):
        (root / domain).mkdir(parents=True)
        for pid in range(ids):
            pattern = np.random.default_rng([number, pid]).uniform(0, 200, (4, 4, 3))
            for camera in range(1, cameras + 1):
                for index in range(per_camera):
                    noise = np.random.default_rng([number, pid, camera, index]).normal(0, 60, (4, 4, 3))
                    value = np.kron(pattern * (0.6 + 0.1 * number) + noise, np.ones((8, 8, 1)))
                    image = Image.fromarray(np.clip(value, 0, 255).astype(np.uint8))
                    image.save(root / domain / f"{pid:04d}_c{camera}_{index}.png")
    return root


def tiny_config(folder: Path, preset: str = "paper") -> ConfigDict:
    """Three sources, the unseen `west`, 3 epochs of 3 steps."""
    config = metabin(preset)
    config.data.path = str(folder)
    config.data.cache_dir = f"{folder}-cache"
    config.data.eval_domains = ("west",)
    config.data.height = config.data.width = 32
    config.data.pad = 2
    config.model.name = "tiny"
    config.model.dtype = "float32"
    config.batch.ids_per_domain = config.batch.images_per_id = 2
    config.batch.ids_per_batch = 6
    config.batch.meta_train_domains = 2
    config.optimizer.warmup_epochs = 1
    config.optimizer.decay_epochs = (2,)
    config.meta.beta_epochs = 2
    config.epochs = 3
    config.steps_per_epoch = 3
    config.log_every = 1
    return config


def resident_config(folder: Path, steps_per_dispatch: int) -> ConfigDict:
    """The same, with the images on the device."""
    config = tiny_config(folder)
    config.data.resident, config.steps_per_dispatch = True, steps_per_dispatch
    return config


class PixelNet(nn.Module):
    """As models.ReID, but its backbone is one MetaBIN layer over a coarse picture."""

    num_classes: int

    @nn.compact
    def __call__(self, image_NHWC: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        feature_ND = _Backbone(name="backbone")(image_NHWC, train)
        return feature_ND, feature_ND, nn.Dense(self.num_classes, use_bias=False, name="classifier")(feature_ND)


class _Backbone(nn.Module):
    @nn.compact
    def __call__(self, image_NHWC: jax.Array, train: bool) -> jax.Array:
        coarse_NHWC = nn.avg_pool(image_NHWC, (8, 8), (8, 8))
        map_NHWC = BatchInstanceNorm(name="stem_norm")(nn.Dense(8, use_bias=False)(coarse_NHWC), train)
        return nn.relu(map_NHWC).reshape(len(image_NHWC), -1)


@contextmanager
def pixel_nets() -> Iterator[None]:
    """Runs are built with a PixelNet, whatever their config says."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (build, evaluate):
            patch.setattr(module, "build_model", lambda config, num_ids: PixelNet(num_ids))
        yield


def rows(workdir: Path) -> list[dict]:
    """What stands in metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


class Killed(Exception):
    pass


@contextmanager
def killed_after(step: int) -> Iterator[None]:
    """A training in this context dies once `step` is done."""
    read_batches = train.read_batches

    def dying(run, images, start, stop):
        yield from read_batches(run, images, start, min(step, stop))
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "read_batches", dying)
        yield


def state_of(config, workdir, step=STEPS):
    with Checkpoints(workdir, scored=config.selection == "source_val", create=False) as checkpoints:
        return checkpoints.restore(build.build(build.resolve(config)).init(), step)


def leaves(state):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def differences(a, b):
    """The names of the leaves that differ in any bit."""
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    return [name for name in a if (a[name].dtype, a[name].tobytes()) != (b[name].dtype, b[name].tobytes())]


def without_rate(workdir):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows(workdir)]


def assert_same_run(config, workdir, other):
    assert differences(state_of(config, workdir), state_of(config, other)) == []
    assert without_rate(workdir) == without_rate(other)
    assert len(rows(workdir)) == STEPS
