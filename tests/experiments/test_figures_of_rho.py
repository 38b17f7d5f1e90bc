"""Figures 4 and 5: shares of rho and gradients on it, against values worked out by hand and finite differences."""

import functools
import math

import jax
import numpy as np
import optax
import pytest
from compile_options import COMPILE_QUICKLY
from jax.flatten_util import ravel_pytree
from small_problem import draw_batch, small_net, start_state

pytest.importorskip("matplotlib", reason="the figures are drawn with matplotlib")

from experiments import fig4, fig5
from metabin_jax.algorithm import MetaBIN


def line(run="method=metabin", target="x", seed=0, **numbers):
    return {"run": run, "target": target, "seed": seed, **numbers}


# --- Figure 4 -------------------------------------------------------------------------------------------------------

# Three layers of 4, 2 and 10 channels, by bin: at 0, ten between, at 1.
COUNTS = [[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3], [0] * 10 + [1, 1], [0] * 11 + [10]]
RHO = {"layers": ["stem", "block", "head"], "counts": COUNTS, "mean": [0.75, 0.9, 1.0]}


def test_shares_of_channels_are_drawn_on_top_of_each_other():
    other = {**RHO, "counts": [[3, *COUNTS[0][1:-1], 1], *COUNTS[1:]]}
    lines = [line("method=bin", **RHO), line(**RHO), line(**other, seed=1)]
    bin_panel, metabin_panel, *_ = fig4.draw(lines).axes
    assert (bin_panel.get_title(), metabin_panel.get_title()) == ("BIN", "MetaBIN")
    bars = metabin_panel.patches  # bin after bin, layer by layer
    assert [bar.get_height() for bar in bars[:3]] == [0.5, 0, 0]  # at 0
    assert [(bar.get_y(), bar.get_height()) for bar in bars[-3:]] == [(0.5, 0.5), (0.5, 0.5), (0, 1)]  # at 1
    assert bin_panel.patches[0].get_height() == 0.25
    assert bars[0].get_facecolor() != bars[-1].get_facecolor()


def test_how_far_each_third_of_the_net_went_towards_in():
    words = fig4.report([line("method=bin", **RHO), line(**RHO), line(**{**RHO, "mean": [0.25, 0.9, 1]}, seed=1)])
    assert "| BIN | 0.2500 | 0.1000 | 0.0000 | 87.5 | 1 |" in words
    assert "| MetaBIN | 0.5000 ± 0.3536 | 0.1000 ± 0.0000 | 0.0000 ± 0.0000 | 87.5 ± 0.0 | 2 |" in words
    four = {"counts": [[0] * 11 + [n] for n in (3, 1, 2, 2)], "mean": [0.5, 0.9, 0.6, 0.8]}
    np.testing.assert_allclose(fig4.towards_in(four), [(3 * 0.5 + 0.1) / 4, 0.4, 0.2])


# --- Figure 5 -------------------------------------------------------------------------------------------------------


def losses_by_hand(feature_ND, pid_N, domain_N):
    """Eq. 3, 6 and 7 in numpy."""
    distance_NN = np.sqrt(np.square(feature_ND[:, None] - feature_ND[None]).sum(-1))
    same, near = pid_N[:, None] == pid_N[None], domain_N[:, None] == domain_N[None]

    def extreme(of, allowed, otherwise):
        return of(np.where(allowed, distance_NN, otherwise), axis=1)

    centroid_ND = np.stack([feature_ND[domain_N == k].mean(0) for k in domain_N])
    cosine_N = (feature_ND * centroid_ND).sum(1) / np.linalg.norm(feature_ND, axis=1)
    inter_N, intra_N = extreme(np.max, ~near, -np.inf), extreme(np.min, near & ~same, np.inf)
    hinge_N = extreme(np.max, same, -np.inf) - extreme(np.min, ~same, np.inf) + 0.3
    return {
        "scatter": (cosine_N / np.linalg.norm(centroid_ND, axis=1)).mean(),
        "shuffle": np.log1p(np.exp(inter_N - intra_N)).mean(),
        "triplet": np.maximum(hinge_N, 0).mean(),
    }


def test_the_gradient_of_each_loss_is_that_of_finite_differences():
    """In float64, channel by channel; another loss's gradient, or the other sign, would be seen."""
    jit = functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)
    with jax.enable_x64(True):
        model, optimizer = small_net(), optax.sgd(0.1)
        learner = MetaBIN(model, optimizer, beta=1e-3)
        state, xs = start_state(model, optimizer, rho=(0.2, 0.8)), draw_batch((0, 2, 3), seed=5)
        found = jit(functools.partial(fig5.loss_gradients, learner))(state, xs)
        inner, _ = jit(learner.inner_update)(state, xs)
        rho, unflatten = ravel_pytree(state.rho)
        forward = jit(lambda rho: learner.forward(state.replace(rho=unflatten(rho)), xs)[0][0])

        def losses(rho):
            return losses_by_hand(np.asarray(forward(rho)), np.asarray(xs.pid), np.asarray(xs.domain))

        steps = 1e-6 * np.eye(len(rho))
        ends = [(losses(rho + step), losses(rho - step)) for step in steps]
        gradient = {name: np.asarray(ravel_pytree(tree)[0]) for name, tree in found.items()}
        moved = np.asarray(rho - ravel_pytree(inner)[0])
    assert list(gradient) == ["scatter", "shuffle", "triplet"]
    expected = {name: np.array([(up[name] - down[name]) / 2e-6 for up, down in ends]) for name in gradient}
    for name, value in gradient.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-7)
        for other in gradient.keys() - {name}:
            assert np.linalg.norm(value - expected[other]) > 0.1 * np.linalg.norm(value)
        assert np.linalg.norm(value + expected[name]) > 1.9 * np.linalg.norm(value)
    # Together they are the inner step: what it adds to rho is -beta times their sum.
    np.testing.assert_allclose(moved, 1e-3 * sum(gradient.values()), rtol=1e-7)


def test_gradients_are_summed_up_per_layer():
    trees = [{"backbone": {"stem": {"rho": [1.0, -3.0]}, "head": {"rho": [-1.0]}}}]
    trees += [{"backbone": {"stem": {"rho": [2.0, 4.0]}, "head": {"rho": [-2.0]}}}]
    layers = [("backbone", "head"), ("backbone", "stem")]
    assert fig5.summary(trees, layers) == {"mean": [-1.5, 1.0], "positive": [0.0, 0.75]}


def gradients(scatter, shuffle, triplet, **key):
    """A line: two layers, of 1 and of 3 channels."""
    means = {"scatter": scatter, "shuffle": shuffle, "triplet": triplet}
    numbers = {loss: {"mean": mean, "positive": [1.0, 0.5]} for loss, mean in means.items()}
    return line(step=9, batches=7, layers=["stem", "head"], channels=[1, 3], gradient=numbers, **key)


def test_the_verdict_is_a_t_test_over_seeds():
    """Student's t with 1 degree of freedom is Cauchy."""
    p, agrees = fig5.verdict(np.array([0.4, 0.5]), 1)
    assert p == pytest.approx(1 - 2 / math.pi * math.atan(0.45 / 0.05)) and agrees == "undecided"
    far = np.array([4.0, 4.1])
    assert [fig5.verdict(values, sign)[1] for values in (far, -far) for sign in (1, -1)] == ["yes", "no", "no", "yes"]
    assert math.isnan(fig5.verdict(np.array([0.4]), 1)[0])
    assert fig5.verdict(np.array([0.4]), 1)[1] == "undecided"


def test_the_verdict_in_words():
    lines = [
        gradients([2.0, 2.0], [-1.0, -5.0], [2.0, 4.0]),
        gradients([2.2, 2.2], [-1.0, -5.4], [-2.0, -6.0], seed=1),
    ]
    scatter, shuffle, triplet = fig5.report(lines).splitlines()[2:5]
    assert scatter == "| Lscat | +2.1e+00 ± 1.4e-01 | 62.5 ± 0.0 | IN | IN | 0.030 | yes | 2 |"
    assert shuffle == "| Lshuf | -4.2e+00 ± 2.1e-01 | 62.5 ± 0.0 | BN | IN | 0.023 | no | 2 |"
    assert triplet == "| Ltr | -7.5e-01 ± 6.0e+00 | 62.5 ± 0.0 | BN | BN | 0.889 | undecided | 2 |"


def test_gradients_are_drawn_per_layer_with_their_deviation():
    lines = [gradients([1, 2], [0, 0], [-1, -2]), gradients([3, 2], [0, 0], [-1, -2], seed=1)]
    scatter, shuffle, triplet = fig5.draw(lines).axes
    assert [bar.get_height() for bar in scatter.patches] == [2, 2]
    assert [bar.get_height() for bar in triplet.patches] == [-1, -2]
    assert scatter.patches[0].get_facecolor() != triplet.patches[0].get_facecolor()
    assert scatter.containers[0].lines[2][0].get_segments()[0][:, 1] == pytest.approx(
        [2 - math.sqrt(2), 2 + math.sqrt(2)]
    )
    assert shuffle.get_ylim()[0] < 0 < shuffle.get_ylim()[1]
