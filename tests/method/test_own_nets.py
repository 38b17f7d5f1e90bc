"""Nets of one's own: what they may lack, and the one error for what they may not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compile_options import COMPILE_QUICKLY

from metabin_jax import losses, models
from metabin_jax.algorithm import Batch, MetaBIN
from metabin_jax.learner import Learner
from metabin_jax.norm import BatchInstanceNorm

BATCH = Batch(jax.random.normal(jax.random.key(0), (8, 4, 4, 3)), jnp.arange(8) // 2, jnp.arange(8) // 4)


class Plain(nn.Module):
    """Without running moments and, by default, without rho."""

    balanced: bool = False

    @nn.compact
    def __call__(self, image_NHWC, train):
        x_NHWC = nn.Conv(4, (1, 1))(image_NHWC)
        if self.balanced:
            x_NHWC = BatchInstanceNorm()(x_NHWC, train)
        feature_ND = nn.relu(x_NHWC).mean((1, 2))
        return feature_ND, feature_ND, nn.Dense(4)(feature_ND)


def test_a_net_without_batch_stats_trains():
    learner = Learner(Plain(), optax.sgd(0.1))
    state = learner.init(jax.random.key(0), BATCH.image)
    after, metrics = jax.jit(learner.train_step)(state, BATCH, None, None)
    assert after.batch_stats == {} and np.isfinite(metrics["base/triplet"])
    assert not np.array_equal(after.params["Conv_0"]["kernel"], state.params["Conv_0"]["kernel"])


class Logits(Plain):
    """Of a batch of three, its rows could pass for the three outputs."""

    @nn.compact
    def __call__(self, image_NHWC, train):
        return nn.Dense(4)(image_NHWC.mean((1, 2)))


def test_a_net_of_other_outputs_is_refused_in_one_sentence():
    learner = Learner(Logits(), optax.sgd(0.1))
    batch = jax.tree.map(lambda leaf: leaf[:3], BATCH)
    state = learner.init(jax.random.key(0), batch.image)
    with pytest.raises(
        TypeError, match=r"^the model must return learner\.Outputs\(feature_ND, embedding_ND, logits_NM\)"
    ):
        learner.train_step(state, batch, None, None)


def test_a_net_without_rho_is_refused_by_metabin_in_one_sentence():
    metabin = MetaBIN(Plain(), optax.sgd(0.1), beta=0.1)
    state = metabin.init(jax.random.key(0), BATCH.image)
    with pytest.raises(ValueError, match=r"no collection 'rho': give it norm layers such as norm\.BatchInstanceNorm"):
        metabin.train_step(state, BATCH, BATCH, BATCH)


@pytest.mark.parametrize("number", [np.float64, np.float32, float])
def test_rho_keeps_its_type_whatever_numbers_beta_and_gamma_are(number):
    with jax.enable_x64(True):
        metabin = MetaBIN(Plain(balanced=True), optax.sgd(0.1), beta=number(0.1), gamma=number(0.1))
        batch = BATCH.replace(image=BATCH.image.astype(jnp.float32))
        state = metabin.init(jax.random.key(0), batch.image)
        rho = state.rho["BatchInstanceNorm_0"]["rho"]
        after, _ = jax.jit(metabin.meta_update, compiler_options=COMPILE_QUICKLY)(state, batch, batch)
        assert after.rho["BatchInstanceNorm_0"]["rho"].dtype == rho.dtype == jnp.float32


@pytest.mark.parametrize("pid", [-1, 4])
def test_a_pid_beyond_the_classes_is_named(pid):
    pid_N = jnp.array([0, 3, pid])
    with pytest.raises(ValueError, match=rf"values from {min(pid, 0)} to {max(pid, 3)}, not from 0 to 3"):
        losses.cross_entropy(jnp.zeros((3, 4)), pid_N)
    assert np.isnan(jax.jit(losses.cross_entropy)(jnp.zeros((3, 4)), pid_N))
    assert np.isfinite(losses.cross_entropy(jnp.zeros((2, 4)), pid_N[:2]))


def test_pixels_are_not_taken_for_normalised_images():
    net = models.create("stem", 4)
    with pytest.raises(
        TypeError, match=r"images are uint8: a net takes floats, as data\.augment\.normalise makes them"
    ):
        net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8), train=False)
