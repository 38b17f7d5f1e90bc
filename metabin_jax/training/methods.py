"""What a method is, in one table, and the losses that a config may name."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ml_collections import ConfigDict

from metabin_jax.algorithm import MetaBIN, scatter, shuffle
from metabin_jax.baselines import BAU, MLDG, BalancedMetaBIN, Joint, LearnedRho
from metabin_jax.learner import Learner, Loss, cross_entropy, triplet


class Method(NamedTuple):
    """norm: of norm.LAYERS. splits_domains: into meta-train and meta-test. mixes_styles: see models.mixstyle."""

    norm: str
    learner: type[Learner]
    splits_domains: bool = False
    mixes_styles: bool = False


METHODS: dict[str, Method] = {
    # Table 4
    "bn": Method("bn", Learner),
    "in": Method("in", Learner),
    "half": Method("half", Learner),
    "dualnorm": Method("dualnorm", Learner),
    "bin": Method("bin", LearnedRho),
    "metabin": Method("metabin", MetaBIN, splits_domains=True),
    # Table 3
    "bn_mldg": Method("bn", MLDG, splits_domains=True),
    "bin_mldg": Method("bin", MLDG, splits_domains=True),
    "metabin_shared": Method("bin", MetaBIN, splits_domains=True),
    "metabin_joint": Method("metabin", Joint, splits_domains=True),
    # beyond the paper
    "ibn_a": Method("ibn_a", Learner),
    "mixstyle": Method("bn", Learner, mixes_styles=True),
    "metabin_mixstyle": Method("metabin", MetaBIN, splits_domains=True, mixes_styles=True),
    "bau": Method("bn", BAU),
    "metabin_bau": Method("metabin", BalancedMetaBIN, splits_domains=True),
}

# Name -> config.loss -> the loss; Eq. 2, 3, 6 and 7.
LOSSES: dict[str, Callable[[ConfigDict], Loss]] = {
    "cross_entropy": lambda settings: partial(cross_entropy, smoothing=settings.smoothing),
    "triplet": lambda settings: partial(triplet, margin=settings.margin),
    "scatter": lambda settings: partial(scatter, normalize_first=settings.scatter_normalize_first),
    "shuffle": lambda settings: shuffle,
}
