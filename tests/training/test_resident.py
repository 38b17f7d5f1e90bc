"""A resident set and several steps in a dispatch change where images come from, and not one bit of what is learned."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import differences, resident_config

from metabin_jax.data import resident
from metabin_jax.data.pipeline import batches
from metabin_jax.data.sampler import DomainSampler, MetaSampler
from metabin_jax.training import build, train

PID, DOMAIN = np.repeat(np.arange(18), 5), np.repeat(np.arange(3), 30)


def test_spans_end_with_the_epochs():
    assert resident.cut(0, 7, 2, 3) == [range(0, 2), range(2, 3), range(3, 5), range(5, 6), range(6, 7)]
    assert resident.cut(3, 6, 8, 3) == [range(3, 6)]
    assert resident.cut(4, 8, 2, 4) == [range(4, 6), range(6, 8)]
    assert resident.cut(6, 6, 2, 3) == []


@pytest.mark.parametrize("with_meta", [True, False])
def test_the_rows_are_those_of_the_batches(with_meta):
    draws = DomainSampler(PID, DOMAIN, 2, 2, seed=0)
    meta = MetaSampler(draws, 2).meta if with_meta else lambda step: ()

    def rows(step):
        return draws.base(step), *meta(step)

    images = np.arange(90, dtype=np.uint8).reshape(90, 1, 1, 1)  # an image says which row it is
    expected = [[batch for batch in step if batch] for step in batches(images, PID, DOMAIN, rows, 2, 7)]
    got = list(resident.step_rows(rows, resident.cut(2, 7, 2, 100)))
    assert [rows.num_steps for rows in got] == [2, 2, 1]
    sizes = [sum(rows_NK.size for rows_NK in rows if rows_NK is not None) for rows in got]
    assert sizes == ([2 * 24, 2 * 24, 24] if with_meta else [2 * 12, 2 * 12, 12])
    columns = [
        [rows_NK[:, k] for rows_NK in rows if rows_NK is not None] for rows in got for k in range(rows.num_steps)
    ]
    assert len(columns) == len(expected) == 5
    for of_step, batches_of_step in zip(columns, expected, strict=True):
        for row_N, batch in zip(of_step, batches_of_step, strict=True):
            assert row_N.dtype == np.int32
            assert row_N.tolist() == batch.image.ravel().tolist()


@pytest.mark.usefixtures("quick_net")
def test_one_device_learns_the_same_bits(folder):
    """Of the net and of the log. Negative control: the rows of the next three steps."""
    config = resident_config(folder, steps_per_dispatch=3)
    run = build.build(build.resolve(config))
    images, device = build.load_images(run.config, run.data.records), jax.devices()[0]
    step_fn, state, log = train.make_step(run), run.init(), []
    for raw in batches(images, run.data.pid, run.data.domain, run.rows, 0, 3):
        state, metrics = step_fn(state, raw, run.key)
        log.append(jax.device_get(metrics))

    dataset = resident.put(images, run.data.pid, run.data.domain, jax.sharding.SingleDeviceSharding(device))
    steps_fn = resident.several_steps(step_fn)
    (same, metrics), (other, _) = (
        steps_fn(run.init(), *train.read_batches(run, images, start, start + 3), run.key, dataset) for start in (0, 3)
    )
    assert differences(same, state) == []
    assert metrics.keys() == log[0].keys()
    for name, value_K in jax.device_get(metrics).items():
        assert value_K.tolist() == [row[name] for row in log], name
    assert {name.split("[")[0] for name in differences(other, state)} >= {".params", ".rho", ".batch_stats"}


def test_a_set_that_does_not_fit_is_refused_before_it_is_decoded(folder, tmp_path, monkeypatch):
    card = SimpleNamespace(device_kind="Card X", memory_stats=lambda: {"bytes_limit": 2**30, "bytes_in_use": 0})
    text = "the 121765 images take 11.1 GiB, but JAX may use 1.0 GiB of Card X: train with --config.data.resident=False"
    with pytest.raises(ValueError, match=re.escape(text)):
        resident.check_fits(121_765, (256, 128), card)
    resident.check_fits(10_922, (256, 128), card)
    with pytest.raises(ValueError):
        resident.check_fits(10_923, (256, 128), card)  # of 98304 bytes: 10922.67 are 1 GiB
    for stats in (None, {}):
        resident.check_fits(10**9, (256, 128), SimpleNamespace(memory_stats=lambda stats=stats: stats))

    asked = []
    monkeypatch.setattr(train, "load_images", lambda *_: pytest.fail("images were decoded"))
    check_fits = resident.check_fits
    monkeypatch.setattr(resident, "check_fits", lambda *args: asked.append(args[:2]) or check_fits(10**9, (1, 1), card))
    with pytest.raises(ValueError, match="the 1000000000 images take"):
        train.train(resident_config(folder, 1), tmp_path / "workdir")
    assert asked == [(48, (32, 32))]
    assert not (tmp_path / "workdir").exists()
