"""Many runs in one program: jobs that differ in target, seed, alpha or gamma train side by side, vmapped over states.

A small net leaves a GPU mostly idle; with one lane per run the GPU has enough to do. On a CPU it does not pay. Batches,
initial weights and selection are those of `metabin_jax.training.train`, so the results are too, to rounding.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from metabin_jax.data.augment import normalise
from metabin_jax.data.pipeline import RawBatch
from metabin_jax.data.records import Record
from metabin_jax.data.resident import StepRows, several_steps
from metabin_jax.evaluation import query_gallery, retrieval_metrics
from metabin_jax.learner import TrainState
from metabin_jax.runtime.compilation import compile_ahead, use_compilation_cache
from metabin_jax.runtime.errors import UserError
from metabin_jax.runtime.platforms import tracing_for
from metabin_jax.training import config as configuration
from metabin_jax.training.build import Run, build, build_learner, load_images, read, resolve, with_weights
from metabin_jax.training.train import make_step

NUMBERS = ("optimizer.alpha", "meta.gamma")  # may differ between lanes, as may
LABELS = ("seed", "data.train_domains", "data.eval_domains")
CHUNK = 160  # images that a lane embeds at a time
Curve = dict[str, list[float]]  # metric -> its value at the end of every epoch


@dataclasses.dataclass(frozen=True)
class Lanes:
    """L runs of one method, and the n images of all their domains.

    image: uint8 [n, H, W, 3]. place: of each run, where the records of its training set are among `records`.
    """

    runs: list[Run]
    records: list[Record]
    image: np.ndarray
    place: list[np.ndarray]

    @classmethod
    def of(cls, configs: Sequence[ConfigDict]) -> "Lanes":
        """Raises UserError if the runs differ in more than NUMBERS and LABELS, or in the shapes of their batches."""
        runs = [build(resolve(config)) for config in configs]
        if len({_shared(run) for run in runs}) > 1:
            raise UserError(
                f"runs that train together differ in {', '.join(LABELS + NUMBERS)} alone and have equal numbers of "
                "identities: train these one by one"
            )
        named = [(*run.config.data.train_domains, *run.config.data.eval_domains) for run in runs]
        records = read(runs[0].config, tuple(sorted({domain for domains in named for domain in domains})))
        row_of = {record.path: row for row, record in enumerate(records)}
        place = [np.array([row_of[record.path] for record in run.data.records]) for run in runs]
        return cls(runs, records, load_images(runs[0].config, records), place)

    def dataset(self) -> RawBatch:
        """The images, and pid and domain of every image in every lane, [L, n]; -1 where a lane does not train on it."""
        labels = np.full((2, len(self.runs), len(self.records)), -1, np.int32)
        for lane, (run, rows) in enumerate(zip(self.runs, self.place, strict=True)):
            labels[:, lane, rows] = run.data.pid, run.data.domain
        return jax.device_put(RawBatch(np.asarray(self.image), *labels))

    def rows(self, steps: range) -> StepRows:
        """What each lane sees in these steps: int32 [L, N, K]."""
        lanes = [zip(*map(run.rows, steps), strict=True) for run in self.runs]
        placed = [[own[np.stack(rows, 1)] for rows in lane] for lane, own in zip(lanes, self.place, strict=True)]
        return StepRows(*(np.stack(part).astype(np.int32) for part in zip(*placed, strict=True)))

    def numbers(self) -> dict[str, np.ndarray]:
        """The values [L] of NUMBERS."""
        return {
            name: np.array([configuration.get(run.config, name) for run in self.runs], np.float32) for name in NUMBERS
        }

    def states(self) -> TrainState:
        """Fresh states, with the weights that the config names, stacked: every leaf [L, ...]."""
        run = self.runs[0]
        image = jnp.zeros((1, run.config.data.height, run.config.data.width, 3))
        states = jax.jit(jax.vmap(run.learner.init, in_axes=(0, None)))(self.keys(), image)
        if not run.config.init:
            return states
        lanes = [jax.tree.map(lambda leaf, k=k: leaf[k], states) for k in range(len(self.runs))]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(with_weights(run.config, lane)[0] for lane in lanes))

    def keys(self) -> jax.Array:
        return jnp.stack([run.key for run in self.runs])

    def scored_rows(self) -> list[list[np.ndarray]]:
        """For each lane the rows of its target, then of the held-out identities of each source."""
        domain_n = np.array([record.domain for record in self.records])
        return [
            [np.flatnonzero(np.isin(domain_n, run.config.data.eval_domains))]
            + [own[rows] for rows in run.data.held_out.values()]
            for run, own in zip(self.runs, self.place, strict=True)
        ]


Measure = Callable[[Lanes, TrainState, RawBatch, int], dict[str, jax.Array]]  # more numbers, each [L]


def train_together(
    configs: Sequence[ConfigDict], measure: Measure | None = None, steps: Sequence[int] = ()
) -> list[tuple[dict[str, Any], Curve]]:
    """Trains all; of each, the result at the epoch that its config selects, and curves over the epochs.

    The result has R-1, mAP, queries and step and, if identities are held out, source_mAP. Curves have these too, the
    means of the training's metrics over the epoch, and "source R-1". measure: (lanes, states, dataset, step) -> more
    numbers [L], at the epochs that end at one of `steps`. Raises as `Lanes.of`.
    """
    use_compilation_cache()
    lanes = Lanes.of(configs)
    run = lanes.runs[0]
    states, dataset, numbers, scored = lanes.states(), lanes.dataset(), lanes.numbers(), lanes.scored_rows()
    longest = max(len(np.concatenate(rows)) for rows in scored)
    padded = np.stack([np.resize(np.concatenate(rows), longest) for rows in scored])
    train_fn, embed_fn = _vmapped_steps(run), _vmapped_embedding(run)
    found: list[list[Future[dict[str, float]]]] = []
    with ThreadPoolExecutor() as pool:  # scores one epoch while the next one trains
        for epoch in range(run.config.epochs):
            first, step = epoch * run.steps_per_epoch, (epoch + 1) * run.steps_per_epoch
            rows = lanes.rows(range(first, step))
            if epoch == 0:
                train_fn = compile_ahead(train_fn, states, rows, lanes.keys(), dataset, numbers)
            states, metrics = train_fn(states, rows, lanes.keys(), dataset, numbers)
            means = {name: value.mean(1) for name, value in metrics.items() if name != "finite"}
            more = measure(lanes, states, dataset, step) if measure and step in steps else {}
            known = jax.device_get({"step": jnp.full(len(configs), step), **means, **more})
            feature_LND = np.asarray(embed_fn(states, padded, dataset.image))
            found.append(
                [
                    pool.submit(
                        _numbers, lanes, scored[lane], feature_LND[lane], {k: v[lane] for k, v in known.items()}
                    )
                    for lane in range(len(configs))
                ]
            )
    curves: list[Curve] = [{} for _ in configs]
    for of_epoch in found:
        for curve, future in zip(curves, of_epoch, strict=True):
            for name, value in future.result().items():
                curve.setdefault(name, []).append(value)
    return [(_selected(run.config, curve), curve) for curve in curves]


def _vmapped_steps(run: Run) -> Callable[..., Any]:
    """(states, StepRows, keys, dataset, numbers) -> (states, metrics [L, K]) of K steps; the states are donated."""

    def lane(state: TrainState, rows: StepRows, key: jax.Array, dataset: RawBatch, numbers: dict) -> Any:
        config = run.config.copy_and_resolve_references()
        with config.ignore_type():  # the numbers are traced
            config.update_from_flattened_dict(numbers)
        learner = build_learner(config, run.data.num_ids, run.steps_per_epoch, with_shuffle=_has_shuffle(run))
        step_fn = make_step(dataclasses.replace(run, config=config, learner=learner))
        return several_steps(step_fn)(state, rows, key, dataset)

    return jax.jit(jax.vmap(lane, in_axes=(0, 0, 0, RawBatch(None, 0, 0), 0)), donate_argnums=0)


def _vmapped_embedding(run: Run) -> Callable[..., Any]:
    """(states, rows [L, n], images) -> embeddings float32 [L, n, D], in evaluation mode."""

    def lane(state: TrainState, row_n: jax.Array, image: jax.Array) -> jax.Array:
        variables = {"params": state.params, "rho": state.rho, "batch_stats": state.batch_stats}

        def embed(row: jax.Array) -> jax.Array:
            return run.learner.model.apply(variables, normalise(image[row][None]), train=False)[1][0]

        with tracing_for(jax.default_backend()):
            return jax.lax.map(embed, row_n, batch_size=CHUNK)

    return jax.jit(jax.vmap(lane, in_axes=(0, 0, None)))


def _numbers(lanes: Lanes, rows: list[np.ndarray], feature_ND: np.ndarray, known: dict[str, Any]) -> dict[str, float]:
    """R-1, mAP and queries of the target, means over the sources of what is held out, and what is known already."""
    config, found = lanes.runs[0].config, []
    for part, start in zip(rows, np.cumsum([0, *map(len, rows)]), strict=False):
        split = query_gallery([lanes.records[row] for row in part.tolist()], config.eval.policy)
        own_ND = feature_ND[start : start + len(part)]
        found.append(
            retrieval_metrics(own_ND[split.query_row], own_ND[split.gallery_row], *split.labels, config.eval.metric)
        )
    target, *sources = found
    scores = {"R-1": target.cmc[1], "mAP": target.mAP, "queries": target.num_valid}
    if sources:
        scores["source R-1"] = float(np.nanmean([source.cmc[1] for source in sources]))
        scores["source_mAP"] = float(np.nanmean([source.mAP for source in sources]))
    return scores | {name: float(value) for name, value in known.items()}


def _selected(config: ConfigDict, curve: Curve) -> dict[str, Any]:
    """The values at the epoch that config.selection chooses: the last, or the first of the best on the sources."""
    chosen = int(np.argmax(curve["source_mAP"])) if config.selection == "source_val" else -1
    found: dict[str, Any] = {name: int(curve[name][chosen]) for name in ("queries", "step")}
    return found | {name: curve[name][chosen] for name in ("R-1", "mAP", "source_mAP") if name in curve}


def _has_shuffle(run: Run) -> bool:
    return run.meta is None or run.meta.num_meta_train > 1


def _shared(run: Run) -> str:
    """What runs that train together have in common, as text."""
    fields = run.config.copy_and_resolve_references()
    with fields.ignore_type():
        fields.update_from_flattened_dict(dict.fromkeys(LABELS + NUMBERS))
    return json.dumps([fields.to_json(), run.data.num_ids, run.steps_per_epoch, [len(rows) for rows in run.rows(0)]])
