"""Runs that train in one program are the runs that `train` makes one by one."""

import json

import jax
import numpy as np
import pytest

from configs import networks
from experiments import together
from experiments.together import Lanes, train_together
from metabin_jax.runtime.errors import UserError
from metabin_jax.training.train import train

STEPS = 3


def config(tmp_path, method, target, seed, **fields):
    config = networks.get_config()
    config.method, config.seed, config.data.eval_domains = method, seed, (target,)
    config.data.train_domains = tuple(name for name in ("plaza", "mall", "street", "campus") if name != target)
    config.data.identities, config.data.cache_dir, config.model.name = 6, str(tmp_path / "cache"), "stem"
    config.data.height = config.data.width = 32
    config.batch.ids_per_domain = config.batch.images_per_id = 2
    config.epochs, config.steps_per_epoch, config.log_every = 1, STEPS, 1
    config.optimizer.warmup_epochs = 0
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(autouse=True)
def quickly(optimised_again):
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("method", ["metabin", "bin"])
def test_lanes_are_single_runs(tmp_path, method):
    """Losses and rho step by step, of lanes with other targets, seeds, alpha and gamma. Chaos needs more steps."""
    numbers = {"optimizer.alpha": 0.02, "meta.gamma": 0.5}
    configs = [config(tmp_path, method, "plaza", 0), config(tmp_path, method, "mall", 1, **numbers)]
    lanes = Lanes.of(configs)
    steps_fn = together._vmapped_steps(lanes.runs[0])
    arguments = lanes.states(), lanes.rows(range(STEPS)), lanes.keys(), lanes.dataset(), lanes.numbers()
    _, metrics = steps_fn(*arguments)
    for lane, single in enumerate(configs):
        train(single, tmp_path / f"{lane}")
        rows = [json.loads(line) for line in (tmp_path / f"{lane}/metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "base/triplet" in row]
        assert len(rows) == STEPS
        names = [name for name in metrics if name.startswith(("base/", "rho/", "alpha"))]
        assert len(names) >= 5
        for name in names:
            of_single = [row[name] for row in rows]
            np.testing.assert_allclose(metrics[name][lane], of_single, rtol=1e-3, err_msg=name)
            if name.startswith("base/"):
                assert not np.allclose(metrics[name][1 - lane], of_single, rtol=1e-3)  # the other lane differs


def test_the_result_is_that_of_the_selected_epoch(tmp_path):
    configs = [config(tmp_path, "bn", name, 0, epochs=3) for name in ("plaza", "mall")]
    for result, curve in train_together(configs):
        assert curve["step"] == [3, 6, 9]
        epoch = int(np.argmax(curve["source_mAP"]))
        assert (result["step"], result["R-1"]) == (curve["step"][epoch], curve["R-1"][epoch])
        assert result["queries"] == 48


def test_what_cannot_train_together_is_refused(tmp_path):
    one = config(tmp_path, "bn", "plaza", 0)
    for other in (config(tmp_path, "in", "plaza", 0), config(tmp_path, "bn", "plaza", 1, epochs=2)):
        with pytest.raises(UserError, match="train these one by one"):
            Lanes.of([one, other])
