"""Losses, schedules and SGD against the PyTorch twin: values and gradients in float64, loosely in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from metabin_jax import losses, schedules
from metabin_jax.training import build

torch = pytest.importorskip("torch")

import torch_twin as twin
from twin_compare import distance, worst

CLASSES = 9
# Unequal domains (12, 8 and 6 images); an identity with a single image; identities within their domain.
DOMAIN = np.repeat([0, 1, 2], [12, 8, 6]).astype(np.int32)
PID = np.array([0] * 4 + [1] * 4 + [2] * 4 + [3] * 5 + [4] * 3 + [5] * 3 + [6] * 2 + [7], np.int32)

# name: (ours, theirs, columns), both functions of (x, pid, domain)
LOSSES = {
    "cross_entropy": (
        lambda x, pid, domain: losses.cross_entropy(x, pid),
        lambda x, pid, domain: twin.cross_entropy(x, pid),
        CLASSES,
    ),
    "triplet": (
        lambda x, pid, domain: losses.triplet(x, pid),
        lambda x, pid, domain: twin.triplet(x, pid),
        16,
    ),
    "scatter": (
        lambda x, pid, domain: losses.scatter(x, domain),
        lambda x, pid, domain: twin.scatter(x, domain),
        16,
    ),
    "scatter, normalised first": (
        lambda x, pid, domain: losses.scatter(x, domain, normalize_first=True),
        lambda x, pid, domain: twin.scatter(x, domain, normalize_first=True),
        16,
    ),
    "shuffle": (losses.shuffle, twin.shuffle, 16),
}


def features(columns, dtype):
    """Identities far enough apart that some anchors satisfy the margin and others do not."""
    rng = np.random.default_rng([11, columns])
    identity, image = rng.normal(0.5, 1, (CLASSES, columns)), rng.normal(0, 0.8, (len(PID), columns))
    return (identity[PID] + image).astype(dtype)


def our_value_and_gradient(loss, x):
    return jax.jit(jax.value_and_grad(loss))(jnp.asarray(x), jnp.asarray(PID), jnp.asarray(DOMAIN))


def their_value_and_gradient(loss, x):
    x = torch.from_numpy(x).requires_grad_()
    value = loss(x, torch.from_numpy(PID).long(), torch.from_numpy(DOMAIN).long())
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_twin(name):
    ours, theirs, columns = LOSSES[name]
    expected = their_value_and_gradient(theirs, features(columns, np.float64))
    assert expected[1].norm() > 1e-3
    with jax.enable_x64(True):
        actual = our_value_and_gradient(ours, features(columns, np.float64))
        assert actual[0].dtype == actual[1].dtype == jnp.float64
    assert all(distance(a, e) < 1e-12 for a, e in zip(actual, expected, strict=True))
    actual = our_value_and_gradient(ours, features(columns, np.float32))
    assert actual[0].dtype == actual[1].dtype == jnp.float32
    assert all(distance(a, e) < 1e-4 for a, e in zip(actual, expected, strict=True))


def test_triplet_has_satisfied_and_unsatisfied_anchors():
    """Otherwise the comparison would not see where the hinge lies."""
    x = torch.from_numpy(features(16, np.float64))
    pid, anchors = torch.from_numpy(PID).long(), len(PID)
    margins = (twin.triplet(x, pid, margin) for margin in (0.3, 0.3 - 1e-6))
    active = round(float(next(margins) - next(margins)) * 1e6 * anchors)
    assert 0 < active < anchors


def spread_over_others(x, pid, domain):
    return twin.cross_entropy(x, pid, 0.1 * CLASSES / (CLASSES - 1))


def squared_triplet(x, pid, domain):
    distances = twin.distances(x).square()
    same = pid[:, None] == pid[None, :]
    farthest = distances.masked_fill(~same, -torch.inf).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return torch.relu(farthest - nearest + 0.3).mean()


def mean_over_domains(x, pid, domain):
    return torch.stack([twin.scatter(x[domain == k], domain[domain == k]) for k in range(3)]).mean()


def swapped_shuffle(x, pid, domain):
    """n- nearest and n+ farthest: the text's first reading of Eq. 7, which is not the method."""
    distances, same_domain = twin.distances(x), domain[:, None] == domain[None, :]
    inter = distances.masked_fill(same_domain, torch.inf).amin(1)
    intra = distances.masked_fill(~same_domain | (pid[:, None] == pid[None, :]), -torch.inf).amax(1)
    return torch.nn.functional.softplus(inter - intra).mean()


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("cross_entropy", spread_over_others),
        ("triplet", squared_triplet),
        ("scatter", mean_over_domains),
        ("scatter", LOSSES["scatter, normalised first"][1]),
        ("shuffle", swapped_shuffle),
    ],
)
def test_wrong_loss_is_seen(name, mistake):
    ours, _, columns = LOSSES[name]
    wrong = their_value_and_gradient(mistake, features(columns, np.float64))
    with jax.enable_x64(True):
        actual = our_value_and_gradient(ours, features(columns, np.float64))
    assert all(distance(a, w) > 1e-3 for a, w in zip(actual, wrong, strict=True))


ALPHA = {"base": 0.01, "warmup": 10, "boundaries": (15, 25), "factor": 0.1, "start": 0.01}
BETA = {"low": 1e-3, "high": 0.1, "up": 4, "down": 5}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.warmup_step(**ALPHA), twin.warmup_step(**ALPHA)),
        (schedules.triangular(**BETA), twin.triangular(**BETA)),
    ],
    ids=["alpha", "beta"],
)
def test_schedule_equals_twin(ours, theirs):
    expected = np.array([theirs(step) for step in range(30)])
    with jax.enable_x64(True):
        assert distance(np.array([ours(jnp.int32(step)) for step in range(30)]), expected) < 1e-12
    assert distance(np.array([ours(jnp.int32(step)) for step in range(30)]), expected) < 1e-6
    shifted = np.array([theirs(step + 1) for step in range(30)])
    assert distance(shifted, expected) > 1e-2


def our_sgd(gradients, params, bias_factor):
    settings = ConfigDict({"momentum": 0.9, "weight_decay": 5e-4, "bias_lr_factor": bias_factor})
    optimizer = build.sgd(schedules.warmup_step(**ALPHA), settings)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


def their_sgd(gradients, params, bias_factor, **settings):
    params = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in params.items()}
    groups = [{"params": [p], "factor": bias_factor if name.endswith("bias") else 1.0} for name, p in params.items()]
    optimizer = torch.optim.SGD(groups, **{"momentum": 0.9, "weight_decay": 5e-4} | settings)
    alpha = twin.warmup_step(**ALPHA)
    for step, gradient in enumerate(gradients):
        for group in optimizer.param_groups:
            group["lr"] = alpha(step) * group["factor"]
        for name, p in params.items():
            p.grad = torch.from_numpy(gradient[name].copy())
        optimizer.step()
    return params


@pytest.mark.parametrize("bias_factor", [1.0, 2.0])
def test_sgd_equals_twin(bias_factor):
    rng = np.random.default_rng(5)
    shapes = {"kernel": (3, 4), "scale": (5,), "bias": (5,)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(30)]
    expected = their_sgd(gradients, params, bias_factor)
    with jax.enable_x64(True):
        actual = our_sgd(gradients, jax.tree.map(jnp.asarray, params), bias_factor)
    assert worst(actual, expected)[0] < 1e-12
    for mistake in ({"nesterov": True}, {"dampening": 0.1}, {"weight_decay": 0.0}):
        wrong = their_sgd(gradients, params, bias_factor, **mistake)
        assert all(distance(actual[name], wrong[name]) > 1e-5 for name in actual), mistake
    other = their_sgd(gradients, params, 3.0 - bias_factor)
    assert distance(actual["bias"], other["bias"]) > 1e-2
