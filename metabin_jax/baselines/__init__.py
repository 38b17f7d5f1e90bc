"""Methods that MetaBIN is compared with: a learned rho without meta-learning (BIN), joint updates, MLDG and BAU.

They build on `learner` and `algorithm`. Nothing here reads a config, a file or an image.
"""

from metabin_jax.baselines.bau import BAU, BalancedMetaBIN
from metabin_jax.baselines.learned import MLDG, BaseOnly, Joint, LearnedRho

__all__ = ["BAU", "MLDG", "BalancedMetaBIN", "BaseOnly", "Joint", "LearnedRho"]
