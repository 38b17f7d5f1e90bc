"""Why the methods come out as they do: 9,900 steps of BN, BIN and MetaBIN, watched every 300.

    python -m experiments.why --together=12         WORKDIR/why.jsonl and why.png

Each of six camera networks is the target in turn. Alpha and gamma are those that `experiments.comparison` chose for the
target, whose lines must be in WORKDIR. At STEPS the gradients on rho are measured on the batches that come next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import fig5, figures
from experiments.command_line import command_line, in_one_sentence, parse
from experiments.comparison import chosen, cut, pairs, trials
from experiments.study import Job, read, run_all, run_together
from experiments.tables import Line, Row
from experiments.together import Lanes
from metabin_jax.algorithm import MetaBIN
from metabin_jax.baselines import Joint
from metabin_jax.data import resident
from metabin_jax.data.pipeline import RawBatch, StepBatches
from metabin_jax.learner import TrainState
from metabin_jax.runtime.errors import UserError
from metabin_jax.training.train import prepare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG = {"epochs": 33, "optimizer.decay_epochs": (23, 30)}  # of 300 steps
WATCHED = ("BN", "BIN", "MetaBIN", "MetaBIN + cross-entropy")
STEPS = (300, 900, 3000, 9900)
BATCHES = 20


def gradients_on_rho(lanes: Lanes, states: TrainState, dataset: RawBatch, step: int) -> dict[str, jax.Array]:
    """Numbers [L] of the gradients on rho at the lanes' states, means over the next BATCHES batches.

    size/base: root mean square over channels of the base loss's gradient on X_B; size/meta: of the meta-gradient.
    mean/LOSS and positive/LOSS: the mean over channels of the gradient of each meta-train loss on X_S, and the share of
    channels where it is positive, that is, moves rho towards IN. Nothing for a method without rho.
    """
    run = lanes.runs[0]
    learner: Any = run.learner
    if not jax.tree.leaves(states.rho):
        return {}

    def lane(state: TrainState, rows: Any, key: jax.Array, dataset: RawBatch) -> dict[str, jax.Array]:
        def one(rows_of_step: Any) -> dict[str, jax.Array]:
            number, rows = rows_of_step
            raw = StepBatches(*(resident.gather(dataset, row_N) for row_N in rows if row_N is not None))
            xb, xs, xt = prepare(jax.random.fold_in(key, number), raw, run.config.data.pad)
            found = {
                "size/base": _size(jax.grad(lambda rho: learner.base_loss(state.replace(rho=rho), xb)[0])(state.rho))
            }
            if isinstance(learner, MetaBIN) and not isinstance(learner, Joint):
                found["size/meta"] = _size(learner.meta_gradient(state, xs, xt)[0])
                for name, tree in fig5.loss_gradients(learner, state, xs).items():
                    values = _flat(tree)
                    found |= {f"mean/{name}": values.mean(), f"positive/{name}": (values > 0).mean()}
            return found

        numbers = step + jnp.arange(BATCHES)
        found = jax.lax.map(one, (numbers, jax.tree.map(jnp.transpose, rows)))
        return jax.tree.map(jnp.mean, found)

    rows = lanes.rows(range(step, step + BATCHES))
    return jax.jit(jax.vmap(lane, in_axes=(0, 0, 0, RawBatch(None, 0, 0))))(states, rows, lanes.keys(), dataset)


def _flat(tree: Any) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def _size(tree: Any) -> jax.Array:
    return jnp.sqrt(jnp.square(_flat(tree)).mean())


def watched(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of the chosen trials of each of WATCHED that has any."""
    found = {method: list(pairs(lines, method).values()) for method in WATCHED}
    return {method: own for method, own in found.items() if own}


def longer(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of why.jsonl of each of WATCHED that has any, of the targets and seeds that all of these have."""
    runs = {method: {_longer(row).run for row in trials(method)} for method in WATCHED}
    found = {method: [line for line in lines if line["run"] in runs[method]] for method in WATCHED}
    have = [{(line["target"], line["seed"]) for line in own} for own in found.values() if own]
    shared = set.intersection(*have) if have else set()
    kept = {method: [line for line in own if (line["target"], line["seed"]) in shared] for method, own in found.items()}
    return {method: own for method, own in kept.items() if own}


def _longer(row: Row) -> Row:
    return replace(row, overrides=row.overrides | LONG)


def mean_rho(lines: Sequence[Line]) -> np.ndarray:
    """The mean over stages of the curves of rho, [epochs]; [0] for a method without rho."""
    return np.array([curve(lines, stage) for stage in stages(lines[0])] or np.empty((1, 0))).mean(0)


def stages(line: Line) -> list[str]:
    """The names of the curves of rho, from input to output."""
    return sorted((name for name in line["curve"] if name.startswith("rho/")), key=_place)


def curve(lines: Sequence[Line], name: str) -> np.ndarray:
    """The mean over targets of the mean over seeds of a curve, [epochs]."""
    targets: dict[str, list[list[float]]] = {line["target"]: [] for line in lines}
    for line in lines:
        targets[line["target"]].append(line["curve"][name])
    return np.mean([np.mean(curves, axis=0) for curves in targets.values()], axis=0)


def draw_scores(of: Mapping[str, Sequence[Line]]) -> "Figure":
    """R-1 over the steps, on the target and on the held-out identities of the sources."""
    figure, panels = _panels(2, "R-1 (%)")
    titles = {"R-1": "unseen network", "source R-1": "held-out identities of the sources"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        panel.set_title(title)
        for colour, (method, lines) in zip(figures.COLOURS, of.items(), strict=False):
            panel.plot(lines[0]["curve"]["step"], 100 * curve(lines, name), color=colour, label=method)
    panels[1].legend(fontsize=8)
    return figure


def draw_rho(of: Mapping[str, Sequence[Line]]) -> "Figure":
    """The mean of rho in each stage over the steps; 1 is BN, 0 IN."""
    learned = {method: lines for method, lines in of.items() if "rho/stem" in lines[0]["curve"]}
    figure, panels = _panels(len(learned), "mean of rho", sharey=True)
    for panel, (method, lines) in zip(panels, learned.items(), strict=True):
        panel.set_title(method, fontsize=10)
        for colour, stage in zip(figures.COLOURS, stages(lines[0]), strict=False):
            label = stage.removeprefix("rho/")
            panel.plot(lines[0]["curve"]["step"], curve(lines, stage), color=colour, label=label)
    panels[0].legend(fontsize=8)
    return figure


def draw_inner(of: Mapping[str, Sequence[Line]]) -> "Figure":
    """What the inner step does: |rho' - rho|, and the share of channels that it takes out of [0, 1]."""
    meta = {method: lines for method, lines in of.items() if "inner/clipped" in lines[0]["curve"]}
    figure, panels = _panels(2)
    titles = {"inner/rho_change": "mean of |rho' - rho|", "inner/clipped": "share of channels clipped"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        panel.set_title(title)
        for colour, (method, lines) in zip(figures.COLOURS[2:], meta.items(), strict=False):
            panel.plot(lines[0]["curve"]["step"], curve(lines, name), color=colour, label=method)
        panel.set_ylim(0)
    panels[0].legend(fontsize=8)
    return figure


def draw_gradients(of: Mapping[str, Sequence[Line]]) -> "Figure":
    """At STEPS: the size of both gradients on rho, and the mean of each meta-train loss's gradient, as in Figure 5."""
    figure, panels = _panels(2)
    panels[0].set(title="root mean square on rho", yscale="log")
    panels[1].set(title="mean on rho, above 0 towards IN", yscale="symlog")
    panels[1].set_yscale("symlog", linthresh=1e-5)
    panels[1].axhline(0, color="black", linewidth=0.8)
    for style, (method, lines) in zip(("-", "--", ":", "-."), of.items(), strict=False):
        for colour, name in zip(figures.COLOURS, ("size/base", "size/meta"), strict=False):
            if name in lines[0]["curve"]:
                panels[0].plot(STEPS, curve(lines, name), style, color=colour, label=f"{method}, {name[5:]}")
        for colour, loss in zip(figures.COLOURS, fig5.PAPER, strict=False):
            if f"mean/{loss}" in lines[0]["curve"]:
                panels[1].plot(STEPS, curve(lines, f"mean/{loss}"), style, color=colour, label=f"{method}, {loss}")
    for panel in panels:
        panel.legend(fontsize=6)
    return figure


def _place(stage: str) -> tuple[int, str]:
    """Sorts stages from input to output."""
    return {"rho/stem": 0, "rho/head": 2}.get(stage, 1), stage


def _panels(count: int, ylabel: str = "", sharey: bool = False) -> "tuple[Figure, Sequence[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False, sharey=sharey)[0]
    panels[0].set_ylabel(ylabel)
    for panel in panels:
        panel.set_xlabel("step")
    return figure, panels


def main() -> None:
    parser = command_line("why", __doc__)
    parser.set_defaults(data="networks", seeds=(0, 1))
    parser.add_argument("--together", type=int, default=1, help="runs of a method that share a program; default: 1")
    with in_one_sentence(parser):
        args = parse(parser)
        targets = args.targets or args.setting.targets(supervised=False)
        known, groups = read(args.workdir / "results.jsonl"), []
        for method in WATCHED:
            rows = {target: chosen(known, method, target) for target in targets}
            if missing := [target for target, row in rows.items() if row is None]:
                raise UserError(
                    f"{args.workdir} has no trials of {method} on {missing[0]}: run experiments.comparison there first"
                )
            jobs = [
                Job(_longer(row), target, seed, args.setting, args.workdir)
                for seed in args.seeds
                for target, row in rows.items()
                if row
            ]
            groups += cut(jobs, args.together)
        work = partial(run_together, measure=gradients_on_rho, steps=STEPS)
        lines = run_all(groups, args.setting, args.workdir, args.jobs, work, "why.jsonl")
        print(figures.save(draw_gradients(longer(lines)), args.workdir / "why.png"))


if __name__ == "__main__":
    main()
