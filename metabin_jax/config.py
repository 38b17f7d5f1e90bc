"""Every setting with its source, and the checks that run before any work does."""

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from metabin_jax import norm
from metabin_jax.models import reid

PRESETS = ("paper", "official")
SOURCES = ("synthetic", "folder", "csv")
SAMPLINGS = ("domains", "identities")
SELECTIONS = ("last", "source_val")
POLICIES = ("cross-camera", "ignore")
METRICS = ("cosine", "euclidean")
DTYPES = ("float32", "bfloat16")


def metabin(preset: str = "paper") -> ConfigDict:
    """The settings of the paper's text ('paper') or of the authors' released code ('official').

    Where the paper is silent, 'paper' takes the released code's value and says so here.
    """
    if preset not in PRESETS:
        raise ValueError(f"the preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    official = preset == "official"
    config = ConfigDict()
    config.preset = preset
    config.seed = 0
    config.method = "metabin"  # the norm layer and how rho is learned: bn, in, half, dualnorm, bin (Table 4), metabin

    config.data = ConfigDict()
    config.data.source = "folder"  # synthetic | folder (of domains, Market-1501 file names) | csv (a manifest)
    config.data.path = ""  # of the folder or the CSV file
    config.data.train_domains = ()  # the sources; () = all that are not evaluated on
    config.data.eval_domains = ()  # the unseen targets; () = none
    config.data.height = 256  # pixels, Sec. 4.1
    config.data.width = 128  # pixels, Sec. 4.1
    config.data.pad = 10  # pixels, before the random crop; released code
    config.data.cache_dir = "~/.cache/metabin_jax/images"  # decoded images; safe to delete

    config.model = ConfigDict()
    config.model.name = "mobilenetv2_1.4"  # Sec. 4.1; see models.create for the others
    config.model.dtype = "bfloat16"  # the paper and the code use float16 with loss scaling (Sec. 4.1)
    config.model.classifier_init = "uniform" if official else "normal"  # released code | BNNeck ([31])

    config.batch = ConfigDict()
    # domains: 16 images of every source (Sec. 4.1). identities: of all not yet used this epoch (released code).
    config.batch.sampling = "identities" if official else "domains"
    config.batch.ids_per_domain = 4  # 16 images per domain (Sec. 4.1) as 4 x 4 (released code); meta batches too
    config.batch.images_per_id = 4
    config.batch.ids_per_batch = 20  # for sampling 'identities'; 20 x 4 = 80 images
    config.batch.meta_train_domains = 3  # of 5 (Sec. 4.3, Fig. 2); the others are meta-test

    config.optimizer = ConfigDict()  # of params; Sec. 4.1
    config.optimizer.alpha = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4  # on everything, norm scales and biases included (released code)
    config.optimizer.bias_lr_factor = 2.0 if official else 1.0
    config.optimizer.warmup_epochs = 10
    config.optimizer.warmup_start = 0.01  # times alpha, then linear per step; released code
    config.optimizer.decay_epochs = (40, 70)
    config.optimizer.decay = 0.1

    config.loss = ConfigDict()
    config.loss.smoothing = 0.1  # Sec. 4.1
    config.loss.margin = 0.3  # Sec. 4.1
    config.loss.scatter_normalize_first = official  # centroid of L2-normalised features (released code)

    config.meta = ConfigDict()
    config.meta.beta_low = 1e-4 if official else 1e-3  # Sec. 4.1; the released code multiplies the cycle by 0.1
    config.meta.beta_high = 1e-2 if official else 1e-1
    config.meta.beta_epochs = 5  # one cycle; released code
    config.meta.gamma = 0.1  # Sec. 4.1
    config.meta.start = 9 if official else 0  # the first step that meta-updates: 10 base updates come before
    config.meta.first_order = True  # Sec. 4.1; False for the exact meta-gradient

    config.epochs = 100  # Sec. 4.1
    config.steps_per_epoch = 0  # 0: every image once, each identity's padded to a multiple of images_per_id
    config.log_every = 50  # steps
    config.selection = "last"  # last | source_val: the checkpoint best on held-out source identities
    config.val_fraction = 0.1  # of each source's identities, held out when selection is source_val

    config.eval = ConfigDict()
    config.eval.metric = "cosine"  # released code
    config.eval.policy = "cross-camera"  # cross-camera (Market-1501's protocol) | ignore
    config.eval.batch_size = 128
    return config


def check(config: ConfigDict) -> None:
    """Raises ValueError with one sentence for the first value that cannot work. Reads no data."""
    _one_of(config, "method", norm.LAYERS)
    _one_of(config, "data.source", SOURCES)
    _one_of(config, "batch.sampling", SAMPLINGS)
    _one_of(config, "selection", SELECTIONS)
    _one_of(config, "eval.policy", POLICIES)
    _one_of(config, "eval.metric", METRICS)
    _one_of(config, "model.dtype", DTYPES)
    _one_of(config, "model.classifier_init", reid.CLASSIFIER_INITS)
    reid.create(config.model.name, num_classes=1)
    for field in (
        "batch.ids_per_domain", "batch.images_per_id", "batch.ids_per_batch", "batch.meta_train_domains",
        "meta.beta_epochs", "epochs", "log_every", "eval.batch_size",
    ):  # fmt: skip
        _at_least(config, field, 1)
    for field in (
        "seed", "steps_per_epoch", "data.pad", "optimizer.alpha", "optimizer.warmup_epochs", "loss.margin",
        "meta.beta_low", "meta.beta_high", "meta.gamma", "meta.start",
    ):  # fmt: skip
        _at_least(config, field, 0)
    for field in ("data.height", "data.width"):
        if _get(config, field) < 32:
            raise ValueError(f"config.{field} is {_get(config, field)}, but the backbone needs 32 pixels or more")
    if config.data.source != "synthetic" and not config.data.path:
        raise ValueError(f"config.data.path is empty: say where the {config.data.source} is, --config.data.path=...")
    if config.batch.images_per_id < 2 or config.batch.ids_per_domain < 2:
        raise ValueError(
            "config.batch.images_per_id and ids_per_domain must be 2 or more: the triplet loss needs a positive "
            "and a negative"
        )
    both = sorted(set(config.data.train_domains) & set(config.data.eval_domains))
    if both:
        raise ValueError(f"domain {both[0]!r} is in both data.train_domains and data.eval_domains: choose one")


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _one_of(config: ConfigDict, field: str, allowed: Collection[str]) -> None:
    if _get(config, field) not in allowed:
        raise ValueError(f"config.{field} must be one of {', '.join(allowed)}; got {_get(config, field)!r}")


def _at_least(config: ConfigDict, field: str, low: float) -> None:
    if _get(config, field) < low:
        raise ValueError(f"config.{field} must be {low} or more; got {_get(config, field)}")
