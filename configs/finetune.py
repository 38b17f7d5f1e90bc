"""Pictures of anything, starting from ImageNet weights: a short training of small squares, minutes on a CPU.

    metabin train --config=finetune --workdir=RUN --config.init=WEIGHTS \\
        --config.data.path=DIR --config.data.eval_domains=NAME

WEIGHTS is a MobileNetV2 x1.0 of torchvision, timm or any other layout that load_torch knows. For people see
configs/people.py.
"""

from ml_collections import ConfigDict

from metabin_jax.training.config import WEIGHTS_NEEDED, metabin


def get_config(preset: str = "paper") -> ConfigDict:
    config = metabin(preset)
    config.data.height = 96  # square: these need not be people
    config.data.width = 96
    config.data.pad = 6
    config.init = WEIGHTS_NEEDED
    config.init_in_affine = "bn"
    config.model.name = "mobilenetv2_standard_1.0"  # the variant of the weights that can be downloaded
    config.model.dtype = "float32"  # CPUs are slow in bfloat16
    config.batch.ids_per_batch = 16  # for the preset `official`: 16 x 4 = 64 images
    config.optimizer.warmup_epochs = 1
    config.optimizer.decay_epochs = (3, 4)
    config.epochs = 5
    config.steps_per_epoch = 12
    config.meta.beta_epochs = 1
    config.meta.gamma = 0.5  # 60 steps instead of 184,900; at 2 rho goes too far too fast for pretrained weights
    config.log_every = 10
    return config
