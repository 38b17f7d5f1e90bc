"""Methods that MetaBIN is compared with: a learned rho without meta-learning (BIN), joint updates, MLDG and BAU.

They build on `learner` and `algorithm`. Nothing here reads a config, a file or an image.
"""

from metabin_jax.baselines.bau import BAU, BalancedMetaBIN
from metabin_jax.baselines.joint import MLDG, Joint
from metabin_jax.baselines.learned_rho import LearnedRho

__all__ = ["BAU", "MLDG", "BalancedMetaBIN", "Joint", "LearnedRho"]
