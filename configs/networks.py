"""Six networks of 200 synthetic people each, 3,000 steps: long enough to tell methods apart, on a GPU in minutes.

One network is the unseen target, by default `underpass`; the others train. The checkpoint is the best on identities of
the sources that are held out.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(preset: str = "paper") -> ConfigDict:
    config = demo.get_config(preset)
    config.data.identities = 200
    config.selection = "source_val"
    config.steps_per_epoch = 300  # ten epochs, with the decay of alpha of `demo`
    config.meta.beta_epochs = 1
    return config
