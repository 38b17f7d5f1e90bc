"""MetaBIN (Choi et al., CVPR 2021) in JAX and Flax.

The method itself is four modules at this level: `algorithm`, `norm`, `losses` and `schedules`, with the `learner` that
they share. Everything else lives in a room, whose `__init__` says what belongs there and what does not.
"""
