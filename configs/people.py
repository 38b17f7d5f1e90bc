"""Pictures of people, thousands of them, from pretrained weights: what a practitioner with a GPU wants.

    metabin train --config=people --workdir=RUN --config.init=WEIGHTS \\
        --config.data.path=DIR --config.data.eval_domains=NAME

The paper's image size and schedule, shortened to 40 passes over the images. WEIGHTS is a MobileNetV2 x1.0; other nets
need --config.model.name. On a CPU add --config.model.dtype=float32.
"""

from ml_collections import ConfigDict

from metabin_jax.training.config import WEIGHTS_NEEDED, metabin


def get_config(preset: str = "paper") -> ConfigDict:
    config = metabin(preset)
    config.init = WEIGHTS_NEEDED
    config.init_in_affine = "bn"
    config.model.name = "mobilenetv2_standard_1.0"  # the variant of the weights that can be downloaded
    config.optimizer.warmup_epochs = 4  # of 40 as the paper's 10 of 100, and so on
    config.optimizer.decay_epochs = (16, 28)
    config.epochs = 40
    config.meta.beta_epochs = 2
    config.meta.gamma = 0.5  # some thousand steps instead of 184,900
    config.selection = "source_val"  # sources with enough identities: no target chooses the checkpoint
    return config
