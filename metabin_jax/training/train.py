"""Training of a config in a workdir."""

import contextlib
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from metabin_jax.algorithm import Batch, Metrics, TrainState
from metabin_jax.baselines import MLDG
from metabin_jax.data import resident
from metabin_jax.data.augment import augment
from metabin_jax.data.pipeline import StepBatches, batches
from metabin_jax.runtime import peers
from metabin_jax.runtime.compilation import compile_ahead, use_compilation_cache
from metabin_jax.runtime.devices import Placement, check_shared, say, shapes_on
from metabin_jax.runtime.errors import Stopped, UserError, few
from metabin_jax.runtime.platforms import tracing_for
from metabin_jax.runtime.runlog import MetricsWriter, NotFinite
from metabin_jax.runtime.signals import StopRequests
from metabin_jax.training import trained
from metabin_jax.training.build import Run, alpha_schedule, build, load_images, resolve, with_weights
from metabin_jax.training.checkpoint import Checkpoints, has_checkpoint
from metabin_jax.training.evaluate import evaluate_trained, read_targets, source_score
from metabin_jax.training.workdir import check_progress, check_records, check_workdir, describe_run, locked


def make_step(run: Run, platform: str = "") -> Callable[..., tuple[TrainState, Metrics]]:
    """The whole iteration as one jitted function (state, StepBatches, key) -> (state, metrics); the state is donated.

    Not with config.debug_nans: JAX then needs the state to do a step again, operation by operation.
    key: the run's. It is an argument, so that runs with other seeds share the compiled program. platform: where the
    program will run; by default where JAX computes.
    """
    alpha = alpha_schedule(run.config.optimizer, run.steps_per_epoch)

    def step_fn(state: TrainState, raw: StepBatches, key: jax.Array) -> tuple[TrainState, Metrics]:
        ready = prepare(jax.random.fold_in(key, state.step), raw, run.config.data.pad)
        with tracing_for(platform or jax.default_backend()):
            after, metrics = run.learner.train_step(state, *ready)
        metrics |= rho_by_stage(after.rho) | {"alpha": alpha(state.step)}
        computed = [*metrics.values(), *(leaf.sum() for leaf in jax.tree.leaves((after.params, after.rho)))]
        return after, metrics | {"finite": jnp.isfinite(jnp.stack(computed)).all()}

    return jax.jit(step_fn, donate_argnums=() if run.config.debug_nans else 0)


def prepare(key: jax.Array, raw: StepBatches, pad: int) -> list[Any]:
    """X_B, X_S and X_T of a step, whose key this is, as Batch: augmented; None for those that it does not have."""
    pairs: Any = zip(jax.random.split(key, 3), raw, strict=True)
    # The net may have the same key: a layer that draws mixes its name into it.
    return [batch and Batch(augment(own, batch.image, pad), batch.pid, batch.domain, own) for own, batch in pairs]


def rho_by_stage(rho: Any) -> dict[str, jax.Array]:
    """Mean of rho over the channels of each stage of the backbone; nothing for a model without rho."""
    stages: dict[str, list[jax.Array]] = {}
    for layer, values in rho.get("backbone", {}).items():
        stage = layer.split("_")[0]
        stages.setdefault(stage, []).extend(leaf.ravel() for leaf in jax.tree.leaves(values))
    return {f"rho/{stage}": jnp.concatenate(leaves).mean() for stage, leaves in stages.items()}


def train(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains in `workdir`, resuming a stopped run of the same config, and evaluates on the targets.

    Writes config.json, records.txt, environment.json, metrics.jsonl, TensorBoard events, checkpoints/ and
    evaluation.json, which is also returned (see `evaluate`). Raises UserError or FileNotFoundError, with one sentence,
    before any work is lost; UserError too when the training diverges; Stopped, after a checkpoint, when a signal asks.
    """
    use_compilation_cache()
    workdir = Path(workdir).expanduser()
    config = resolve(config)
    check_workdir(config, workdir)
    run, targets = build(config), read_targets(config)
    check_records(config, run.data.records, workdir)
    check_progress(workdir, run.steps_per_epoch)
    placement = Placement.over(jax.devices())
    check_divisible(run, placement.whole.num_devices)
    if config.data.resident:
        resident.check_fits(len(run.data.records), (config.data.height, config.data.width), jax.local_devices()[0])
    if config.init and not has_checkpoint(workdir):
        with_weights(config, jax.eval_shape(run.init))  # a file that does not fit is refused here
    images, target_images = load_images(config, run.data.records), load_images(config, targets) if targets else None
    with locked(workdir):
        describe_run(config, run.data.records, workdir)
        peers.forget(workdir)
        check_shared(workdir / "config.json")
        with peers.Peers(workdir):
            with jax.debug_nans(True) if config.debug_nans else contextlib.nullcontext():
                train_steps(run, images, workdir, placement)
            return evaluate_trained(trained.load(workdir, config), targets, target_images)


def train_steps(run: Run, images: np.ndarray, workdir: Path, placement: Placement) -> None:
    """All steps that the run lacks, with its log and its checkpoints. Raises as `train`."""
    config = run.config
    total, images_per_step = config.epochs * run.steps_per_epoch, sum(map(len, run.rows(0)))
    step_fn = make_step(run)
    more: tuple[Any, ...] = (run.key,)
    programs: dict[int, Callable[..., tuple[TrainState, Metrics]]] = {}
    with StopRequests() as stop, Checkpoints(workdir, bool(run.data.held_out), keep=config.keep) as checkpoints:
        state = first_state(run, checkpoints, placement.whole)
        start = int(state.step)
        if start < total:
            say(
                f"{describe(run)}: from step {start} to {total}, compiling first (half a minute, longer for large nets)"
            )
            if config.data.resident:
                step_fn = resident.several_steps(step_fn)
                more += (resident.put(images, run.data.pid, run.data.domain, placement.whole),)
        step, saved = start, time.monotonic()
        with _explained(run, checkpoints), MetricsWriter(workdir, start, total, config.log_every) as writer:
            for raw in read_batches(run, images, start, total):
                batch = placement.put(raw)
                if batch.num_steps not in programs:
                    began = time.monotonic()
                    compiled = compile_ahead(step_fn, state, batch, *more)
                    programs[batch.num_steps] = step_fn if config.debug_nans else compiled
                    say(f"compiled in {time.monotonic() - began:.0f} s")
                state, metrics = programs[batch.num_steps](state, batch, *more)
                step += batch.num_steps
                writer.step(step, metrics, images_per_step * batch.num_steps, batch.num_steps)
                is_asked, score = stop.asked(), None
                # Clocks differ between processes, which must all save at the same step.
                is_due = jax.process_count() == 1 and time.monotonic() - saved > 60 * config.checkpoint_minutes
                if is_ended := step % run.steps_per_epoch == 0 or is_asked or is_due:
                    writer.flush()
                if step % run.steps_per_epoch == 0 and run.data.held_out:
                    score = source_score(run, images, state)
                    if math.isfinite(score):
                        writer.write(step, {"source_mAP": score})
                if is_ended:
                    checkpoints.save(state, score)
                    saved = time.monotonic()
                if is_asked and step < total:
                    raise Stopped(stop.number, f"stopped at step {step} of {total}: the same command resumes there")


@contextlib.contextmanager
def _explained(run: Run, checkpoints: Checkpoints) -> Iterator[None]:
    """Turns NotFinite, and what config.debug_nans raises, into a sentence."""
    try:
        yield
        return
    except NotFinite as error:
        records = [run.data.records[row].path for row in run.rows(error.step - 1)[0]]
        what = f"step {error.step} is not finite: {', '.join(error.names) or 'the updated parameters'}"
        where = f"Its base batch has {few(records, 3)}"
        advice = "or --config.debug_nans=True, which names the operation"
    except FloatingPointError as error:
        frames, jax_itself = traceback.extract_tb(error.__traceback__), os.path.dirname(jax.__file__)
        place = next(frame for frame in reversed(frames) if not frame.filename.startswith(jax_itself))
        what, where = f"{error}", f"The operation is in {place.name} ({place.filename}, line {place.lineno})"
        advice = "or another net or loss"
    good = checkpoints.latest_step()
    raise UserError(
        f"{what}. {where}; the last good checkpoint is {f'of step {good}' if good else 'none'}. "
        f"Try a smaller --config.optimizer.alpha, --config.model.dtype=float32, {advice}"
    )


def first_state(run: Run, checkpoints: Checkpoints, sharding: NamedSharding) -> TrainState:
    """The latest checkpoint or, without one, a fresh state, with the weights that the config names."""
    if checkpoints.latest_step():
        shapes = jax.eval_shape(run.init)
        return checkpoints.restore_latest(shapes_on(sharding, shapes))
    state = run.init()
    if run.config.init:
        state, report = with_weights(run.config, state)
        say(f"{run.config.init}: {report}")
    return jax.device_put(state, sharding)


def read_batches(run: Run, images: np.ndarray, start: int, stop: int) -> Iterator[StepBatches | resident.StepRows]:
    """The batches of steps start to stop - 1 or, of a resident set, their rows; of each, what this process needs."""
    own = Placement.over(jax.devices()).own

    def rows(step: int) -> list[np.ndarray]:
        return list(map(own, run.rows(step)))

    if run.config.data.resident:
        spans = resident.cut(start, stop, run.config.steps_per_dispatch, run.steps_per_epoch)
        return resident.step_rows(rows, spans)
    return batches(images, run.data.pid, run.data.domain, rows, start, stop)


def describe(run: Run) -> str:
    """What is trained, on what, and how its domains are split."""
    domains = run.data.domains
    words = f"{run.config.method} on {run.data.num_ids} identities of {len(domains)} domains ({'; '.join(domains)})"
    if run.meta:
        count = run.meta.num_meta_train
        words += f", {count} meta-train and {len(domains) - count} meta-test"
        if count == 1 and "shuffle" in run.config.meta.train_losses and not isinstance(run.learner, MLDG):
            words += ", without the shuffle loss, which needs two meta-train domains"
    return words


def check_divisible(run: Run, num_devices: int) -> None:
    """Raises ValueError if a batch cannot be cut into equal parts, one per device."""
    for name, rows in zip(("base", "meta-train", "meta-test"), run.rows(0), strict=False):
        if len(rows) % num_devices:
            raise UserError(
                f"the {name} batch of {len(rows)} images does not divide over {num_devices} devices: "
                "change config.batch or use fewer devices"
            )
