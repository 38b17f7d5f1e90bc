"""What a config says reaches the step, the learner and the net; what a step sees is what the samplers drew."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from moved_pictures import choices, pixels
from tiny_run import tiny_config

from metabin_jax.runtime.errors import UserError
from metabin_jax.training import config as configuration
from metabin_jax.training.build import build, build_learner, load_images, resolve
from metabin_jax.training.config import metabin
from metabin_jax.training.evaluate import file_name
from metabin_jax.training.train import make_step, read_batches
from metabin_jax.training.workdir import check_workdir, describe_run, settings


def seen(config, step):
    """The three batches that the learner gets, with the bits of their keys, and the rows that were drawn."""
    run = build(resolve(config))

    def note(state, *batches):
        """As params, which a step returns whole."""
        noted = [(b.image, b.pid, b.domain, jax.random.key_data(b.key).astype(jnp.uint32)) for b in batches]
        return state.replace(params=noted, step=state.step + 1), {}

    state = run.init().replace(step=jnp.asarray(step, jnp.int32))
    step_fn = make_step(dataclasses.replace(run, learner=SimpleNamespace(train_step=note)))
    images = load_images(run.config, run.data.records)
    (raw,) = read_batches(run, images, step, step + 1)
    batches = jax.device_get(step_fn(state, raw, run.key)[0].params)
    return batches, run.rows(step), images, run.data


def draws(config, step, pad=2):
    """How each image of each batch, which must be the one that was drawn, was flipped and shifted; and the keys."""
    batches, rows, images, data = seen(config, step)
    assert [len(batch[1]) for batch in batches] == list(map(len, rows)) == [12, 8, 4]
    found = []
    for (image, pid, domain, _), row in zip(batches, rows, strict=True):
        np.testing.assert_array_equal(pid, data.pid[row])
        np.testing.assert_array_equal(domain, data.domain[row])
        own = [choices(got, images[one], pad) for got, one in zip(pixels(image), row, strict=True)]
        assert all(len(choice) == 1 for choice in own)
        found.append([choice[0] for choice in own])
    return found, [tuple(batch[3].ravel().tolist()) for batch in batches]


def test_a_step_sees_the_images_that_were_drawn_each_disturbed_by_itself(folder):
    config = tiny_config(folder)
    first, keys = draws(config, 0)
    assert all(len(set(batch)) > len(batch) / 2 for batch in first)
    assert max(abs(move) for batch in first for _, *moves in batch for move in moves) == 2
    next_step, next_keys = draws(config, 1)
    config.seed = 1
    other_seed, other_keys = draws(config, 0)
    assert len({*keys, *next_keys, *other_keys}) == 9
    assert first != next_step and first != other_seed
    config.data.pad = 0
    assert {move[1:] for batch in draws(config, 0, pad=0)[0] for move in batch} == {(0, 0)}


def test_settings_reach_the_learner_and_the_net(folder):
    before = build_learner(tiny_config(folder), 5, 3, with_shuffle=True)
    config = tiny_config(folder)
    config.meta.first_order, config.meta.gamma = False, 0.3
    config.model.dtype, config.model.classifier_init = "bfloat16", "uniform"
    built = build_learner(config, 5, 3, with_shuffle=True)
    assert (before.first_order, built.first_order) == (True, False)
    assert (float(before.gamma(0)), float(built.gamma(0))) == pytest.approx((0.1, 0.3))
    assert (before.model.classifier_init, built.model.classifier_init) == ("normal", "uniform")
    assert (before.model.backbone.dtype, built.model.backbone.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize(("method", "rate"), [("bin", 10 * 0.02), ("metabin_joint", 0.3)])
def test_rho_learns_at_the_rate_of_its_method(folder, method, rate):
    """Ten times alpha where the base loss trains it, gamma where there are no episodes."""
    config = tiny_config(folder)
    config.method, config.meta.gamma = method, 0.3
    config.optimizer.alpha, config.optimizer.warmup_start = 0.02, 1.0
    optimizer = build_learner(config, 5, 3, with_shuffle=True).rho_optimizer
    rho = jnp.ones(2)
    update, _ = optimizer.update(jnp.array([1.0, -2.0]), optimizer.init(rho), rho)
    np.testing.assert_allclose(optax.apply_updates(rho, update), [1 - rate, 1 + 2 * rate], rtol=1e-6)


# Fields that may change what an evaluation of a trained run measures, and those that may change when a run resumes.
MEASURED = {
    "data.source", "data.path", "data.identities", "data.protocol", "data.eval_domains", "data.height", "data.width",
    "selection", "eval.metric", "eval.policy", "eval.rerank", "eval.query_expansion", "eval.far",
}  # fmt: skip
RESUMABLE = {
    "epochs", "log_every", "keep", "checkpoint_minutes", "debug_nans", "data.path", "data.cache_dir", "data.resident",
    "steps_per_dispatch", "eval.metric", "eval.policy", "eval.batch_size", "eval.rerank", "eval.query_expansion",
    "eval.far",
}  # fmt: skip
FIELDS = sorted(flatten_dict(settings(metabin()), sep="."))


def changed(field):
    """The default config with another value of this field."""
    config = metabin()
    value = configuration.get(config, field)
    match value:
        case bool():
            other = not value
        case int() | float():
            other = value + 1
        case str():
            other = value + "other"
        case tuple():
            other = value[:-1] if value else ("other",)
    config.update_from_flattened_dict({field: other})
    return config


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_is_known_as_what_it_changes(tmp_path, field):
    describe_run(metabin(), [], tmp_path)
    is_named = file_name(metabin(), changed(field)) != "evaluation"
    try:
        check_workdir(changed(field), tmp_path)
        may_change = True
    except UserError:
        may_change = False
    assert (is_named, may_change) == (field in MEASURED, field in RESUMABLE)


def test_the_lists_hold_fields_alone():
    assert {*FIELDS} >= MEASURED | RESUMABLE
