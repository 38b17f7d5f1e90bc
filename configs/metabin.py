"""The paper's benchmark setting.

    --config=metabin            what the paper's text says
    --config=metabin:official   what the authors' released code does

Every field is in metabin_jax/training/config.py, with its source.
"""

from metabin_jax.training.config import metabin as get_config

__all__ = ["get_config"]
