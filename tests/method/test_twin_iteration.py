"""Whole iterations of Algorithm 1, first order and exact, against the PyTorch twin on a small MobileNetV2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compile_options import COMPILE_QUICKLY
from ml_collections import ConfigDict

from metabin_jax import models, schedules
from metabin_jax.algorithm import Batch, MetaBIN, TrainState
from metabin_jax.models.mobilenetv2 import Stage
from metabin_jax.training import build

torch = pytest.importorskip("torch")

import torch_twin as twin
from twin_compare import worst

CLASSES, HEIGHT, WIDTH = 10, 32, 16
# One block with a residual and one with a stride: compilation takes nearly all the time here and grows with them.
NET = {"stages": (Stage(1, 8, 1, 1), Stage(2, 12, 1, 2)), "stem": 8, "head": 16}
ITERATIONS = 3
ALPHA = {"base": 0.05, "warmup": 2, "boundaries": (2,), "factor": 0.1, "start": 0.01}
BETA = {"low": 0.05, "high": 0.5, "up": 1, "down": 2}


def draw_batch(domains, rng):
    """Two identities of each domain, four images each; identity and domain both show in the pixels."""
    domain = np.repeat(domains, 8).astype(np.int32)
    pid = (2 * domain + np.tile(np.repeat([0, 1], 4), len(domains))).astype(np.int32)
    looks = np.random.default_rng(1).normal(size=(CLASSES, HEIGHT, WIDTH, 3))
    image = looks[pid] * (1 + domain[:, None, None, None] / 4) + rng.normal(size=(len(pid), HEIGHT, WIDTH, 3))
    return image, pid, domain


def draw_batches():
    """X_B, X_S and X_T of every iteration."""
    rng = np.random.default_rng(2)
    splits = [rng.permutation(5) for _ in range(ITERATIONS)]
    return [[draw_batch(part, rng) for part in (range(5), split[:3], split[3:])] for split in splits]


def start_variables():
    """A net away from its first step: norms and moments random; half of rho on the edges of the box."""
    rng = np.random.default_rng(3)
    model = models.create("tiny", CLASSES, **NET)
    image = jnp.zeros((2, HEIGHT, WIDTH, 3), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    def value(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        if name == "rho":
            return np.clip(rng.uniform(-0.5, 1.5, leaf.shape), 0, 1)
        return rng.uniform(0.5, 1.5, leaf.shape)

    return jax.tree_util.tree_map_with_path(value, shapes)


def our_batch(batch, dtype):
    image, pid, domain = batch
    return Batch(jnp.asarray(image, dtype), jnp.asarray(pid), jnp.asarray(domain))


def their_batch(batch):
    image, pid, domain = map(torch.from_numpy, batch)
    return twin.Batch(image.permute(0, 3, 1, 2), pid.long(), domain.long())


class Recorded(MetaBIN):
    """Reports the meta-gradient, so that one compiled iteration shows everything."""

    def meta_gradient(self, state, xs, xt):
        gradient, metrics = super().meta_gradient(state, xs, xt)
        return gradient, metrics | {"gradient": gradient}


class Recorder(twin.Trainer):
    """The same of the twin."""

    def meta_gradient(self, meta_train, meta_test):
        self.gradient = super().meta_gradient(meta_train, meta_test)
        return self.gradient


class LeakyRecorder(Recorder):
    """Lets the meta batches into the running statistics."""

    def _feature(self, rho, image):
        return torch.func.functional_call(self.model, rho, (image,))[0]


@functools.cache
def run_ours(first_order, dtype=np.float64):
    """Meta-gradient, params, rho, running statistics and momentum of each iteration, by the twin's names."""
    settings = ConfigDict({"momentum": 0.9, "weight_decay": 5e-4, "bias_lr_factor": 2.0})
    optimizer = build.sgd(schedules.warmup_step(**ALPHA), settings)
    beta = schedules.triangular(**BETA)
    metabin = Recorded(models.create("tiny", CLASSES, **NET), optimizer, beta, first_order=first_order)
    step = jax.jit(metabin.train_step, compiler_options=COMPILE_QUICKLY)
    names, results = new_twin().model, []
    with jax.enable_x64(dtype == np.float64):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), start_variables())
        opt_state = optimizer.init(variables["params"])
        state = TrainState(step=jnp.zeros((), jnp.int32), **variables, opt_state=opt_state)
        for batches in draw_batches():
            state, metrics = step(state, *(our_batch(batch, dtype) for batch in batches))
            assert 0 < metrics["inner/clipped"] < 1
            trees = {
                "gradient": metrics["gradient"],
                "params": state.params,
                "rho": state.rho,
                "batch_stats": state.batch_stats,
                "momentum": optax.tree_utils.tree_get(state.opt_state, "trace"),
            }
            results.append({kind: twin.from_flax(tree, names) for kind, tree in trees.items()})
    return results


def new_twin(trainer=Recorder, bias_lr_factor=2.0, **settings):
    model = twin.build("mobilenetv2_1.0", CLASSES, **NET).double()
    twin.load_flax(model, start_variables())
    alpha, beta = twin.warmup_step(**ALPHA), twin.triangular(**BETA)
    return trainer(model, alpha, beta, bias_lr_factor=bias_lr_factor, **settings)


def run_twin(**settings):
    trainer, results = new_twin(**settings), []
    for batches in draw_batches():
        trainer.iteration(*map(their_batch, batches))
        momentum = {name: trainer.optimizer.state[p]["momentum_buffer"] for name, p in trainer.params.items()}
        trees = {
            "gradient": trainer.gradient,
            "params": trainer.params,
            "rho": trainer.rho,
            "batch_stats": {name: b for name, b in trainer.model.named_buffers() if "running" in name},
            "momentum": momentum,
        }
        results.append({kind: {k: v.detach().clone() for k, v in tree.items()} for kind, tree in trees.items()})
    return results


def differences(ours, theirs):
    """Per kind: the largest distance over all iterations and tensors."""
    pairs = list(zip(ours, theirs, strict=True))
    return {kind: max(worst(a[kind], e[kind])[0] for a, e in pairs) for kind in theirs[0]}


ORDERS = pytest.mark.parametrize("first_order", [True, False], ids=["first order", "exact"])


@ORDERS
def test_iterations_equal_twin(first_order):
    found = differences(run_ours(first_order), run_twin(first_order=first_order))
    assert max(found.values()) < 1e-9, found


def test_iterations_equal_twin_loosely_in_float32():
    found = differences(run_ours(True, np.float32), run_twin())
    assert max(found.values()) < 1e-2, found


@ORDERS
def test_plain_clip_is_seen(first_order):
    theirs = run_twin(first_order=first_order, clip=lambda rho: rho.clamp(0, 1))
    assert differences(run_ours(first_order), theirs)["gradient"] > 1e-1


@ORDERS
def test_the_other_order_is_seen(first_order):
    theirs = run_twin(first_order=not first_order)
    assert differences(run_ours(first_order), theirs)["gradient"] > 1e-3


def test_meta_batches_in_the_running_statistics_are_seen():
    assert differences(run_ours(True), run_twin(trainer=LeakyRecorder))["batch_stats"] > 1e-1


def test_biases_at_the_common_rate_are_seen():
    assert differences(run_ours(True), run_twin(bias_lr_factor=1.0))["params"] > 1e-3
