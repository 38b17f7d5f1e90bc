"""A benchmark of the field: its sources, its targets and its splits, on sets prepared by `metabin prepare`.

    metabin prepare all --manual_dir=DOWNLOADS
    metabin train --config=benchmark:p1 --workdir=RUN --config.init=WEIGHTS

WEIGHTS is a MobileNetV2 x1.4 of ImageNet; other nets need --config.model.name. The argument is a protocol of
metabin_jax/evaluation/protocols.json. A preset other than `paper` follows a comma: `p1,official`.
`paper_without_duke` is Table 1 without the withdrawn DukeMTMC-reID.
"""

from ml_collections import ConfigDict

from metabin_jax.evaluation import protocols
from metabin_jax.training.config import WEIGHTS_NEEDED, metabin


def get_config(protocol_and_preset: str = "paper") -> ConfigDict:
    name, _, preset = protocol_and_preset.partition(",")
    protocol = protocols.load(name)
    config = metabin(preset or "paper")
    config.init = WEIGHTS_NEEDED
    config.data.source = "prepared"
    config.data.path = "~/tensorflow_datasets"  # the default of `metabin prepare`
    config.data.protocol = name
    config.data.train_domains = protocol.sources
    config.data.train_splits = protocol.source_splits
    config.data.domain_by = protocol.domain_by
    config.data.eval_domains = protocol.targets
    config.update_from_flattened_dict(protocol.overrides)
    return config
