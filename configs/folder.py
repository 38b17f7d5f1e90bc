"""Your own pictures: a folder with one sub-folder per domain, named as in Market-1501 (0002_c1s1_01.jpg).

    metabin train --config=folder --workdir=RUN \\
        --config.data.path=DIR --config.data.eval_domains=NAME

A small net from scratch on small images, so that it runs on a CPU. On a GPU, take the paper's size back:
--config.model.name=mobilenetv2_1.4 --config.data.height=256 --config.data.width=128.
"""

from ml_collections import ConfigDict

from metabin_jax.training.config import metabin


def get_config(preset: str = "paper") -> ConfigDict:
    config = metabin(preset)
    config.data.height = 40  # square: these need not be people
    config.data.width = 40
    config.data.pad = 4
    config.model.name = "small"
    config.model.dtype = "float32"  # CPUs are slow in bfloat16
    config.batch.ids_per_batch = 16  # for the preset `official`: 16 x 4 = 64 images
    config.optimizer.alpha = 0.05  # from scratch; the paper starts from ImageNet
    config.optimizer.warmup_epochs = 1
    config.optimizer.decay_epochs = (7, 9)
    config.epochs = 10
    config.steps_per_epoch = 30
    config.meta.beta_epochs = 2
    config.meta.gamma = 2.0  # 300 steps instead of 184,900: at the paper's 0.1 rho hardly leaves 1
    return config
