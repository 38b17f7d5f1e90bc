"""The embedded synthetic set, small enough for two CPU cores: five networks train, `underpass` is unseen."""

from ml_collections import ConfigDict

from metabin_jax.training.config import metabin


def get_config(preset: str = "paper") -> ConfigDict:
    config = metabin(preset)
    config.data.source = "synthetic"
    config.data.eval_domains = ("underpass",)
    config.data.height = 64  # a quarter of the paper's sides
    config.data.width = 32
    config.data.pad = 3
    config.model.name = "small"
    config.model.dtype = "float32"  # CPUs are slow in bfloat16
    config.optimizer.alpha = 0.05  # from scratch, the paper starts from ImageNet
    config.optimizer.warmup_epochs = 1
    config.optimizer.decay_epochs = (7, 9)
    config.epochs = 10
    config.steps_per_epoch = 30
    config.meta.beta_epochs = 2
    config.meta.gamma = 2.0  # 300 steps instead of 184,900: at the paper's 0.1 rho hardly leaves 1
    config.log_every = 10
    return config
