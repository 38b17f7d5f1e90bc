"""Figure 5: the gradient on rho of each meta-train loss in the inner update of a trained MetaBIN.

The inner update is rho - beta * gradient (Eq. 9). A positive gradient moves rho towards 0, which is IN; a negative one
moves it towards 1, which is BN. The paper reports positive gradients of the scatter and the shuffle loss and negative
ones of the triplet loss. The table says for each loss whether that holds here. It takes the mean over all channels and
over the BATCHES batches X_S that training would have used next, augmented as in training, and a t test over seeds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from scipy import stats

from experiments import figures
from experiments.study import Job
from experiments.tables import Line, markdown, mean_std, p_value
from metabin_jax.algorithm import Batch, MetaBIN, TrainState
from metabin_jax.report.rho import in_order, layer_name
from metabin_jax.training.build import build, load_images
from metabin_jax.training.train import prepare, read_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES, SMOKE_BATCHES = 100, 2
# Loss -> its name and the sign of its gradients in the paper (Sec. 4.4 and Fig. 5).
PAPER = {"scatter": ("Lscat", 1), "shuffle": ("Lshuf", 1), "triplet": ("Ltr", -1)}
DIRECTION = {1: "IN", -1: "BN"}
ALPHA = 0.05


def loss_gradients(learner: MetaBIN, state: TrainState, xs: Batch) -> dict[str, Any]:
    """The gradient of each single meta-train loss on X_S with respect to rho, shaped like rho."""

    def losses(rho):
        return learner.meta_loss(state, rho, xs, learner.meta_train_losses)[1]

    values, pullback = jax.vjp(losses, state.rho)
    nothing = jax.tree.map(jnp.zeros_like, values)
    return {name: pullback(nothing | {name: jnp.ones_like(values[name])})[0] for name in values}


def measure(job: Job) -> Line:
    """gradient: loss -> `summary` over the batches. channels: of each layer."""
    config, step, variables = figures.restore(job)
    run = build(config)
    state = TrainState(step=jnp.asarray(step, jnp.int32), opt_state=(), **jax.tree.map(jnp.asarray, variables))

    key = jax.random.key(config.seed)

    @jax.jit
    def gradients(state, key, raw):
        _, xs, _ = prepare(key, raw, config.data.pad)
        return loss_gradients(run.learner, state, xs)

    count = SMOKE_BATCHES if job.setting.smoke else BATCHES
    batches = read_batches(run, load_images(config, run.data.records), step, step + count)
    found = [
        jax.device_get(gradients(state, jax.random.fold_in(key, number), batch))
        for number, batch in enumerate(batches, start=step)
    ]
    size = config.data.height, config.data.width
    layers = in_order(run.learner.model, variables, size)
    return job.head | {
        "step": step,
        "batches": count,
        "layers": [layer_name(path) for path in layers],
        "channels": [len(rho_C) for rho_C in layers.values()],
        "gradient": {loss: summary([tree[loss] for tree in found], list(layers)) for loss in found[0]},
    }


def summary(trees: Sequence[Any], layers: Sequence[tuple[str, ...]]) -> dict[str, list[float]]:
    """Mean and share of positive values, layer by layer, of gradients shaped like rho."""
    flat = [flatten_dict(tree) for tree in trees]
    gradient_BC = [np.array([tree[(*path, "rho")] for tree in flat], float) for path in layers]
    return {
        "mean": [float(values.mean()) for values in gradient_BC],
        "positive": [float((values > 0).mean()) for values in gradient_BC],
    }


def overall(lines: Sequence[Line], loss: str, number: str) -> np.ndarray:
    """Mean over all channels, for every seed: [S]."""
    return figures.per_seed(lines, lambda line: np.average(line["gradient"][loss][number], weights=line["channels"]))


def verdict(mean_S: np.ndarray, sign: int) -> tuple[float, str]:
    """Two-sided p of a t test over seeds against 0, and whether the mean has this sign: undecided unless p < ALPHA."""
    p = float(stats.ttest_1samp(mean_S, 0).pvalue) if len(mean_S) > 1 and np.ptp(mean_S) else np.nan
    if not p < ALPHA:
        return p, "undecided"
    return p, "yes" if sign * mean_S.mean() > 0 else "no"


def report(lines: Sequence[Line]) -> str:
    rows = []
    for loss in lines[0]["gradient"]:
        name, sign = PAPER[loss]
        mean_S = overall(lines, loss, "mean")
        p, agrees = verdict(mean_S, sign)
        std = f" ± {mean_S.std(ddof=1):.1e}" if len(mean_S) > 1 else ""
        here = DIRECTION[1 if mean_S.mean() > 0 else -1]
        positive = mean_std(100 * overall(lines, loss, "positive"))
        rows.append(
            [name, f"{mean_S.mean():+.1e}{std}", positive, here, DIRECTION[sign], p_value(p), agrees, len(mean_S)]
        )
    header = ["loss", "gradient", "positive (%)", "pushes towards", "in the paper", "p", "as in the paper", "seeds"]
    batches = lines[0]["batches"]
    return (
        f"{markdown(header, rows)}\n\nGradient on rho, mean over all channels and {batches} meta-train "
        "batches of the trained MetaBIN; mean ± standard deviation over seeds. A positive gradient moves rho "
        f"towards IN. p: two-sided t test over seeds against 0; undecided unless p < {ALPHA}."
    )


def draw(lines: Sequence[Line]) -> "Figure":
    from matplotlib.figure import Figure

    losses = list(lines[0]["gradient"])
    figure = Figure(figsize=(9, 2 + 2 * len(losses)), layout="constrained")
    panels = figure.subplots(len(losses), sharex=True, squeeze=False)[:, 0]
    for panel, loss in zip(panels, losses, strict=True):
        mean_SL = figures.per_seed(lines, lambda line, loss=loss: line["gradient"][loss]["mean"])
        mean_L, std_L = mean_SL.mean(0), figures.deviation(mean_SL)
        colours = [figures.VERMILION if value > 0 else figures.BLUE for value in mean_L]
        panel.bar(range(len(mean_L)), mean_L, 0.8, yerr=std_L if std_L.any() else None, color=colours, capsize=2)
        panel.axhline(0, color="black", linewidth=0.8)
        edge = 1.1 * float((abs(mean_L) + std_L).max()) or 1.0
        panel.set(title=PAPER[loss][0], ylabel="mean gradient on rho", ylim=(-edge, edge))
        panel.set_xlim(-0.6, len(mean_L) - 0.4)
        panel.ticklabel_format(axis="y", scilimits=(0, 0))
        for y, direction in ((0.75, "IN"), (0.25, "BN")):
            panel.text(1.01, y, f"towards {direction}", transform=panel.transAxes, rotation=90, va="center")
    figures.name_layers(panels[-1], lines[0]["layers"])
    return figure


ANALYSIS = figures.Analysis("fig5", __doc__, figures.from_table4("MetaBIN"), measure, report, draw)

if __name__ == "__main__":
    figures.main(ANALYSIS)
