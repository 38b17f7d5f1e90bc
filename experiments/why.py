"""Why the methods come out as they do: 9,900 steps of BN, BIN and MetaBIN, watched every 300.

    python -m experiments.why --together=12         WORKDIR/why.jsonl and its five pictures
    python -m experiments.why --redraw=FILE.jsonl   the pictures again, next to FILE.jsonl

Each of six camera networks is the target in turn. Alpha and gamma are those that `experiments.comparison` chose for the
target, whose lines must be in WORKDIR. At STEPS the gradients on rho are measured on the batches that come next.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.comparison import chosen, cut
from experiments.fig5 import loss_gradients
from experiments.study import Job, command_line, in_one_sentence, parse, read, run_all, run_together
from experiments.together import Lanes
from metabin_jax.algorithm import MetaBIN
from metabin_jax.baselines import Joint
from metabin_jax.data.pipeline import RawBatch, StepBatches
from metabin_jax.learner import TrainState
from metabin_jax.runtime.errors import UserError
from metabin_jax.training.train import prepare

LONG = {"epochs": 33}  # of 300 steps
WATCHED = ("BN", "BIN", "MetaBIN", "MetaBIN, cross-entropy too")
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
            raw = StepBatches(*(jax.tree.map(lambda leaf: leaf[row_N], dataset) for row_N in rows if row_N is not None))
            xb, xs, xt = prepare(jax.random.fold_in(key, number), raw, run.config.data.pad)
            found = {
                "size/base": _size(jax.grad(lambda rho: learner.base_loss(state.replace(rho=rho), xb)[0])(state.rho))
            }
            if isinstance(learner, MetaBIN) and not isinstance(learner, Joint):
                found["size/meta"] = _size(learner.meta_gradient(state, xs, xt)[0])
                for name, tree in loss_gradients(learner, state, xs).items():
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


def main() -> None:
    parser = command_line("why", __doc__)
    parser.set_defaults(data="networks", seeds=(0, 1))
    parser.add_argument("--together", type=int, default=1, help="runs of a method that share a program; default: 1")
    parser.add_argument("--redraw", type=Path, metavar="JSONL", help="draw these numbers; nothing is trained")
    with in_one_sentence(parser):
        args = parse(parser)
        log = args.redraw or args.workdir / "why.jsonl"
        if not args.redraw:
            targets = args.targets or args.setting.targets(supervised=False)
            known = read(args.workdir / "results.jsonl")
            groups = []
            for method in WATCHED:
                rows = {target: chosen(known, method, target) for target in targets}
                if missing := [target for target, row in rows.items() if row is None]:
                    raise UserError(
                        f"{args.workdir} has no trials of {method} on {missing[0]}: run experiments.comparison there first"
                    )
                jobs = [
                    Job(replace(row, overrides=row.overrides | LONG), target, seed, args.setting, args.workdir)
                    for seed in args.seeds
                    for target, row in rows.items()
                ]
                groups += cut(jobs, args.together)
            work = partial(run_together, measure=gradients_on_rho, steps=STEPS)
            run_all(groups, args.setting, args.workdir, args.jobs, work, log.name)
        lines = read(log)
        print("\n".join(str(path) for path in draw_all(lines, log.parent)))


if __name__ == "__main__":
    main()
