"""BAU: Cho et al., "Generalizable Person Re-identification via Balancing Alignment and Uniformity", NeurIPS 2024.

Every image gets a second, strongly changed view. The base loss gets three more terms on the embeddings of both views,
scaled to length 1:

- alignment pulls images to the reliable strong views of their identity;
- uniformity pushes embeddings apart;
- domain uniformity pushes them away from the prototypes of other identities of their domain.

Weights and constants are the authors'. Theirs also has RandAugment and hue in the strong view (here `augment.disturb`),
IN between stages, GeM pooling and Adam. Their bank of prototypes starts full; ours fills as identities appear. Neither
theirs nor `BAU` uses meta-learning. `BalancedMetaBIN` adds BAU's terms to MetaBIN.

Shapes: N images, D values of an embedding, M identities of all sources.
"""

import jax
import jax.numpy as jnp

from metabin_jax.algorithm import MetaBIN
from metabin_jax.data.augment import disturb
from metabin_jax.learner import Array, Batch, Learner, Metrics, Outputs, TrainState, Tree, evaluate
from metabin_jax.losses import unit

ALIGNMENT = 1.5  # weight of alignment; the other terms have weight 1
NEIGHBOURS = 10  # k of the neighbours that must agree
SHARPNESS = 2  # t of exp(-t d^2)
MOMENTUM = 0.1  # share of its old value that a prototype keeps
_TINY = 1e-12


# prototype [M, D] of length 1; domain int32 [M], -1 until the identity appears.
Bank = dict[str, Array]


def _square_distance(a_ND: Array, b_MD: Array) -> Array:
    """Squared distances [N, M] between vectors of length 1."""
    return 2 - 2 * jnp.matmul(a_ND, b_MD.T, precision="highest")


def reliability(original_ND: Array, strong_ND: Array) -> Array:
    """How similar the neighbours of a strong view and an original are: [N, N] in [0, 1], one row per strong view.

    It is the Jaccard index of their k-reciprocal nearest neighbours among all views, themselves included.
    """
    both = jnp.concatenate([original_ND, strong_ND])
    count = len(both)
    nearest = jax.lax.top_k(-_square_distance(both, both), min(NEIGHBOURS, count))[1]
    near = jax.nn.one_hot(nearest, count).sum(1)
    original_NK, strong_NK = jnp.split(near * near.T, 2)
    shared_NN = strong_NK @ original_NK.T
    union_NN = strong_NK.sum(1)[:, None] + original_NK.sum(1)[None, :] - shared_NN
    return shared_NN / jnp.maximum(union_NN, 1)


def alignment(original_ND: Array, strong_ND: Array, pid_N: Array) -> Array:
    """Mean squared distance of strong views to originals of the same identity, weighted by `reliability`; scalar."""
    weight_NN = jax.lax.stop_gradient(reliability(original_ND, strong_ND)) * (pid_N[:, None] == pid_N[None, :])
    distance_NN = _square_distance(strong_ND, original_ND)
    return (weight_NN * distance_NN).sum() / jnp.maximum(weight_NN.sum(), _TINY)


def uniformity(unit_ND: Array) -> Array:
    """log of the mean of exp(-t d^2) over all pairs of different images; scalar."""
    count = len(unit_ND)
    near_NN = jnp.exp(-SHARPNESS * _square_distance(unit_ND, unit_ND)) * (1 - jnp.eye(count))
    return jnp.log(near_NN.sum() / (count * (count - 1)))


def domain_uniformity(unit_ND: Array, pid_N: Array, domain_N: Array, bank: Bank) -> Array:
    """`uniformity` of images with the N nearest prototypes of other identities of their domain; 0 if there are none."""
    distance_NM = _square_distance(unit_ND, bank["prototype"])
    others_NM = bank["domain"][None, :] == domain_N[:, None]
    others_NM &= jnp.arange(len(bank["domain"]))[None, :] != pid_N[:, None]
    near_NM = jnp.where(others_NM, jnp.exp(-SHARPNESS * distance_NM), 0)
    nearest_NN = jax.lax.top_k(near_NM, min(near_NM.shape))[0]
    count = (nearest_NN > 0).sum()
    mean = nearest_NN.sum() / jnp.maximum(count, 1)
    return jnp.where(count > 0, jnp.log(jnp.maximum(mean, _TINY)), 0)


def add(bank: Bank, unit_ND: Array, pid_N: Array, domain_N: Array) -> Bank:
    """The bank after each image in turn has moved the prototype of its identity most of the way to itself."""

    def move(prototype_MD, image):
        unit_D, pid = image
        moved_D = MOMENTUM * prototype_MD[pid] + (1 - MOMENTUM) * unit_D
        return prototype_MD.at[pid].set(unit(moved_D[None])[0]), None

    prototype_MD, _ = jax.lax.scan(move, bank["prototype"], (unit_ND, pid_N))
    return {"prototype": prototype_MD, "domain": bank["domain"].at[pid_N].set(domain_N)}


class BankState(TrainState):
    """bank: the prototypes of all identities."""

    bank: Bank


class _Balanced(Learner):
    """A learner whose base loss has BAU's terms too. Base batches must have a key."""

    def init(self, key: Array, image: Array) -> BankState:
        state = super().init(key, image)
        width, identities = state.params["classifier"]["kernel"].shape
        bank = {"prototype": jnp.zeros((identities, width)), "domain": jnp.full(identities, -1, jnp.int32)}
        return BankState(**vars(state), bank=bank)

    def base_loss(self, state: TrainState, xb: Batch) -> tuple[Array, tuple[Metrics, dict[str, Tree]]]:
        assert xb.key is not None and isinstance(state, BankState)
        bank = state.bank
        strong = disturb(jax.random.fold_in(xb.key, 2), xb.image)  # augment's own keys are 0 and 1
        both, batch_stats = self.forward(state, xb.replace(image=jnp.concatenate([xb.image, strong])))
        (feature_ND, _), embeddings, (logits_NM, _) = (jnp.split(output, 2) for output in both)
        original_ND, strong_ND = map(unit, embeddings)
        loss, terms = evaluate(self.base_losses, Outputs(feature_ND, embeddings[0], logits_NM), xb)
        added = {"alignment": ALIGNMENT * alignment(original_ND, strong_ND, xb.pid)}
        added["uniformity"] = (uniformity(original_ND) + uniformity(strong_ND)) / 2
        first, second = (domain_uniformity(view_ND, xb.pid, xb.domain, bank) for view_ND in (original_ND, strong_ND))
        added["domain_uniformity"] = (first + second) / 2
        bank = add(bank, jax.lax.stop_gradient(original_ND), xb.pid, xb.domain)
        return sum(added.values(), loss), (terms | added, {"batch_stats": batch_stats, "bank": bank})


class BalancedMetaBIN(_Balanced, MetaBIN):
    """MetaBIN whose base loss has BAU's terms too."""


class BAU(_Balanced):
    """BAU without meta-learning: base updates only."""
