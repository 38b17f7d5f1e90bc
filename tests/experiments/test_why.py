"""What is watched during the longer runs: gradients on rho, and means of curves."""

import jax
import numpy as np
import pytest
from test_together import config

from experiments import fig5, why
from experiments.comparison import trials
from experiments.together import Lanes
from metabin_jax.training.build import build, load_images, resolve
from metabin_jax.training.train import prepare, read_batches

STEP, BATCHES = 3, 2


@pytest.fixture(autouse=True)
def quickly(optimised_again):
    jax.config.update("jax_disable_most_optimizations", True)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def one_by_one(single, state):
    """The gradients on rho of a run that trains alone, batch by batch: those of the base loss, the meta-gradients, and
    those of each meta-train loss."""
    run = build(resolve(single))
    learner, found = run.learner, []
    images = load_images(run.config, run.data.records)
    for step, raw in enumerate(read_batches(run, images, STEP, STEP + BATCHES), start=STEP):
        xb, xs, xt = prepare(jax.random.fold_in(run.key, step), raw, run.config.data.pad)
        base = jax.jit(jax.grad(lambda rho, xb=xb: learner.base_loss(state.replace(rho=rho), xb)[0]))(state.rho)
        meta, *_ = jax.jit(learner.meta_gradient)(state, xs, xt)
        losses = jax.jit(lambda state, xs: fig5.loss_gradients(learner, state, xs))(state, xs)
        found.append({"base": flat(base), "meta": flat(meta)} | {name: flat(tree) for name, tree in losses.items()})
    return found


def test_gradients_on_rho_are_means_over_the_next_batches_of_each_lane(tmp_path, monkeypatch):
    monkeypatch.setattr(why, "BATCHES", BATCHES)
    configs = [config(tmp_path, "metabin", target, seed) for seed, target in enumerate(("plaza", "mall"))]
    lanes = Lanes.of(configs)
    states = lanes.states()
    found = why.gradients_on_rho(lanes, states, lanes.dataset(), STEP)
    batches = one_by_one(configs[1], jax.tree.map(lambda leaf: leaf[1], states))
    for name in ("base", "meta"):
        size = np.mean([np.sqrt(np.mean(batch[name] ** 2)) for batch in batches])
        np.testing.assert_allclose(found[f"size/{name}"][1], size, rtol=1e-3)
        assert not np.isclose(found[f"size/{name}"][0], size, rtol=1e-3)  # the other lane differs
    for name in fig5.PAPER:
        mean = np.mean([batch[name].mean() for batch in batches])
        share = np.mean([(batch[name] > 0).mean() for batch in batches])
        np.testing.assert_allclose(found[f"mean/{name}"][1], mean, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(found[f"positive/{name}"][1], share, atol=0.02)


def test_a_method_without_rho_has_no_gradients_on_it(tmp_path):
    lanes = Lanes.of([config(tmp_path, "bn", "plaza", 0)])
    assert why.gradients_on_rho(lanes, lanes.states(), lanes.dataset(), STEP) == {}


def test_longer_runs_are_compared_where_every_method_has_them():
    def line(method, target):
        return {"run": why._longer(trials(method)[0]).run, "target": target, "seed": 0}

    lines = [line("BIN", "mall"), line("BIN", "plaza"), line("MetaBIN", "plaza")]
    short = {"run": trials("BIN")[0].run, "target": "plaza", "seed": 0}
    assert why.longer([*lines, short]) == {"BIN": [lines[1]], "MetaBIN": [lines[2]]}
    assert why.longer([short]) == {}
    assert set(why.longer(lines[:2])["BIN"][0]["run"].split()) >= {"epochs=33", "optimizer.decay_epochs=(23,", "30)"}


def test_a_curve_is_the_mean_over_targets_however_many_seeds_they_have():
    values = {"mall": [[0.0, 0.2], [0.2, 0.4]], "plaza": [[0.8, 1.0]]}
    lines = [{"target": target, "curve": {"R-1": curve}} for target, curves in values.items() for curve in curves]
    np.testing.assert_allclose(why.curve(lines, "R-1"), [0.45, 0.65])
