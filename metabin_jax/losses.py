"""The four losses of the paper: Eq. 2, 3, 6 and 7.

feature_ND [N, D] is the pooled backbone output BEFORE BNNeck, without normalisation. pid_N and domain_N are integers
[N]. Losses are computed in float32, or in float64 if the features are float64. Distances are Euclidean, not squared.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Below this squared distance, every derivative of the distance is 0 instead of NaN.
_TINY = 1e-12
# Above this magnitude features are scaled, because the squares of larger ones leave the range of float32.
_HUGE = 2.0**50


def _full_precision(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def pairwise_distance(feature_ND: Array) -> Array:
    """Euclidean distances dist_NN [N, N], with products at the highest precision (no TF32)."""
    feature_ND = _full_precision(feature_ND)
    largest = jax.lax.stop_gradient(jnp.abs(feature_ND).max())
    scale = jnp.where(largest > _HUGE, largest, 1)
    feature_ND = feature_ND / scale
    # Distances do not depend on the batch mean. Without it, |a|^2 + |b|^2 - 2ab loses fewer digits to cancellation.
    feature_ND = feature_ND - feature_ND.mean(0, keepdims=True)
    square_N = jnp.square(feature_ND).sum(1)
    dot_NN = jnp.matmul(feature_ND, feature_ND.T, precision="highest")
    square_NN = square_N[:, None] + square_N[None, :] - 2 * dot_NN
    return scale * jnp.sqrt(jnp.maximum(square_NN, _TINY))


def _equal(label_N: Array) -> Array:
    return label_N[:, None] == label_N[None, :]


def cross_entropy(logits_NM: Array, pid_N: Array, smoothing: float = 0.1) -> Array:
    """Eq. 2 with label smoothing ([42]): target (1 - eps) + eps / M on the identity, eps / M on the others; scalar.

    logits_NM: [N, M] over all M identities of all sources. pid_N: in 0..M-1; another one makes the loss NaN and, where
    it is known outside of a jitted function, raises ValueError. The released code gives each other identity
    eps / (M - 1) instead, which equals this loss with smoothing eps * M / (M - 1).
    """
    chex.assert_rank([logits_NM, pid_N], [2, 1])
    if isinstance(pid_N, jax.core.Tracer):
        pid_N = jnp.where(pid_N < 0, logits_NM.shape[1], pid_N)  # -1 would be the last identity
    else:
        known_N, most = np.asarray(pid_N), logits_NM.shape[1] - 1
        if known_N.min() < 0 or known_N.max() > most:
            raise ValueError(f"pid_N has values from {known_N.min()} to {known_N.max()}, not from 0 to {most}")
    log_prob_NM = jax.nn.log_softmax(_full_precision(logits_NM))
    hit_N = jnp.take_along_axis(log_prob_NM, pid_N[:, None], axis=1)[:, 0]
    return -((1 - smoothing) * hit_N + smoothing * log_prob_NM.mean(1)).mean()


def triplet(feature_ND: Array, pid_N: Array, margin: float = 0.3) -> Array:
    """Eq. 3: batch-hard hinge [d(a, farthest same id) - d(a, nearest other id) + margin]+, mean over anchors; scalar.

    The anchor counts as a sample of its own identity. If the batch holds one identity only, its anchors add 0.
    """
    chex.assert_rank([feature_ND, pid_N], [2, 1])
    dist_NN = pairwise_distance(feature_ND)
    same_NN = _equal(pid_N)
    farthest_N = jnp.where(same_NN, dist_NN, -jnp.inf).max(1)
    nearest_N = jnp.where(~same_NN, dist_NN, jnp.inf).min(1)
    return jax.nn.relu(farthest_N - nearest_N + margin).mean()


def unit(feature_ND: Array) -> Array:
    """Each feature divided by its length [N, D]. A feature of length 0 stays 0, with a finite gradient."""
    square_N1 = jnp.square(feature_ND).sum(1, keepdims=True)
    return feature_ND / jnp.sqrt(jnp.maximum(square_N1, _TINY))


def scatter(feature_ND: Array, domain_N: Array, normalize_first: bool = False) -> Array:
    """Eq. 6: mean cosine between each feature and the centroid of its domain in the batch; scalar.

    The mean is over samples. normalize_first follows the released code: it takes centroids of L2-normalised features,
    and averages the domains' means. The two averages agree when all domains have equally many samples.
    """
    chex.assert_rank([feature_ND, domain_N], [2, 1])
    feature_ND = _full_precision(feature_ND)
    unit_ND = unit(feature_ND)
    same_NN = _equal(domain_N).astype(feature_ND.dtype)
    members_N = same_NN.sum(1)
    # A sum instead of a mean: the cosine depends on the direction only.
    centroid_ND = jnp.matmul(same_NN, unit_ND if normalize_first else feature_ND, precision="highest")
    cosine_N = (unit_ND * unit(centroid_ND)).sum(1)
    if normalize_first:
        return (cosine_N / members_N).sum() / (1 / members_N).sum()
    return cosine_N.mean()


def shuffle(feature_ND: Array, pid_N: Array, domain_N: Array) -> Array:
    """Eq. 7: softplus(d(a, n-) - d(a, n+)), mean over anchors; scalar.

    n- is the FARTHEST sample of any other domain. n+ is the NEAREST sample of another identity in the same domain. An
    anchor that lacks either adds 0. With one domain in the batch, the loss and its gradient are therefore 0.
    """
    chex.assert_rank([feature_ND, pid_N, domain_N], [2, 1, 1])
    dist_NN = pairwise_distance(feature_ND)
    same_domain_NN = _equal(domain_N)
    inter_N = jnp.where(~same_domain_NN, dist_NN, -jnp.inf).max(1)
    intra_N = jnp.where(same_domain_NN & ~_equal(pid_N), dist_NN, jnp.inf).min(1)
    return jax.nn.softplus(inter_N - intra_N).mean()
