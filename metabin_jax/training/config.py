"""Every setting with its source, and the checks that run before any work does."""

import csv
import math
from collections.abc import Callable, Collection
from functools import partial
from operator import ge, le
from typing import Any

from ml_collections import ConfigDict

from metabin_jax.data.dataset import SOURCES
from metabin_jax.data.records import SPLITS
from metabin_jax.evaluation import protocols
from metabin_jax.models import reid
from metabin_jax.runtime.errors import UserError, is_utf8, meant
from metabin_jax.training.methods import LOSSES, METHODS

KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    tuple: "a tuple, on the command line a,b",
}
PRESETS = ("paper", "official")
CHOICES: dict[str, Collection[str]] = {
    "method": METHODS,
    "data.source": SOURCES,
    "data.domain_by": ("source", "camera"),
    "init_in_affine": ("identity", "bn"),
    "batch.sampling": ("domains", "identities"),
    "selection": ("last", "source_val"),
    "eval.policy": ("cross-camera", "ignore"),
    "eval.metric": ("cosine", "euclidean"),
    "meta.clip": ("straight_through", "plain"),
    "model.dtype": ("float32", "bfloat16"),
    "model.classifier_init": reid.CLASSIFIER_INITS,
}
WEIGHTS_NEEDED = "(needed)"  # config.init of a config that makes no sense without weights
MOST_SEED = 2**32 - 1  # JAX's keys take 32 bits of a seed: a larger one would draw what a smaller one draws
MOST = 2**31 - 1  # of other whole numbers: the device counts steps in int32
# The least value of every number that has one.
LEAST = {
    32: ("data.height", "data.width"),  # pixels: the nets divide them by up to 32
    2: ("batch.ids_per_domain", "batch.images_per_id", "batch.ids_per_batch"),  # triplets: a positive, a negative
    1: ("data.identities", "meta.beta_epochs", "epochs", "steps_per_dispatch", "log_every", "keep", "eval.batch_size"),
    0: (
        "seed", "steps_per_epoch", "checkpoint_minutes", "data.pad", "batch.meta_train_domains", "loss.margin",
        "loss.smoothing",
        "optimizer.alpha", "optimizer.momentum", "optimizer.weight_decay", "optimizer.bias_lr_factor",
        "optimizer.warmup_epochs", "optimizer.warmup_start", "optimizer.decay",
        "meta.beta_low", "meta.gamma", "meta.start", "eval.query_expansion",
    ),
}  # fmt: skip


def metabin(preset: str = "paper") -> ConfigDict:
    """The settings of the paper's text ('paper') or of the authors' released code ('official').

    Where the paper is silent, 'paper' takes the released code's value and says so here.
    """
    if preset not in PRESETS:
        raise UserError(f"the preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    official = preset == "official"
    config = ConfigDict()
    config.preset = preset
    config.seed = 0
    # The norm layer and how rho is learned: bn, in, half, dualnorm, bin, metabin (Table 4). Of Table 3: bn_mldg and
    # bin_mldg (MLDG [22] on bn and bin), metabin_shared (with bin's layer), metabin_joint (without episode separation).
    # Beyond the paper: ibn_a (norm.LAYERS); mixstyle (on bn) and metabin_mixstyle (models.mixstyle); bau (on bn) and
    # metabin_bau (bau).
    config.method = "metabin"
    config.init = ""  # file of weights to start from, see models.load_torch; "" = random. The paper: ImageNet, Sec. 4.1
    # identity | bn: what the IN branch's scale and bias are where `init` has none: 1 and 0 (released code), or BN's. A
    # fresh 1 and 0 beside learned BN scales disturb the net as soon as rho leaves 1, and need a long training.
    config.init_in_affine = "identity"

    config.data = ConfigDict()
    # synthetic | folder (of domains, Market-1501 file names) | csv (a manifest) | prepared (by metabin prepare)
    config.data.source = "folder"
    config.data.identities = 40  # of each network of the synthetic people, the source `synthetic`
    config.data.path = ""  # of the folder or the CSV file, or the data_dir of metabin prepare
    config.data.protocol = ""  # the benchmark that sources and targets are of (configs/benchmark.py), for its tables
    config.data.train_domains = ()  # the sources; () = all that are not evaluated on
    config.data.train_splits = ("train", "all")  # of the sources; the paper trains on all: + "query", "gallery"
    # source | camera: what Algorithm 1 calls a domain. The supplement trains on the cameras of a single source.
    config.data.domain_by = "source"
    config.data.eval_domains = ()  # the unseen targets; () = none
    config.data.height = 256  # pixels, Sec. 4.1
    config.data.width = 128  # pixels, Sec. 4.1
    config.data.pad = 10  # pixels, before the random crop; released code
    config.data.cache_dir = "~/.cache/metabin_jax/images"  # decoded images; safe to delete
    config.data.resident = False  # all images in the memory of each device, 12 GB for the paper's; the same batches

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
    # The others are meta-test. 0: half of all, rounded up: 3 of 5 (Sec. 4.3, Fig. 2), 3 of 6, 4 of 8 (supplement)
    config.batch.meta_train_domains = 0

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
    config.loss.base = ("cross_entropy", "triplet")  # Eq. 4; Table 3 has rows with cross_entropy alone
    config.loss.smoothing = 0.1  # Sec. 4.1
    config.loss.margin = 0.3  # Sec. 4.1
    config.loss.scatter_normalize_first = official  # centroid of L2-normalised features (released code)

    config.meta = ConfigDict()
    config.meta.beta_low = 1e-4 if official else 1e-3  # Sec. 4.1; the released code multiplies the cycle by 0.1
    config.meta.beta_high = 1e-2 if official else 1e-1
    config.meta.beta_epochs = 5  # one cycle; released code
    config.meta.gamma = 0.1  # Sec. 4.1
    # Eq. 8 and Eq. 10. Table 2 has rows with others; for a single source the supplement adds cross_entropy to both.
    config.meta.train_losses = ("scatter", "shuffle", "triplet")
    config.meta.test_losses = ("triplet",)
    config.meta.start = 9 if official else 0  # the first step that meta-updates: 10 base updates come before
    # straight_through | plain: the gradient of the inner step's clip, see learner.clip_straight_through
    config.meta.clip = "straight_through"
    config.meta.first_order = True  # Sec. 4.1; False for the exact meta-gradient

    config.epochs = 100  # Sec. 4.1
    config.steps_per_epoch = 0  # 0: every image once, each identity's padded to a multiple of images_per_id
    config.steps_per_dispatch = 1  # in one program, where the set is resident; small nets wait for the host otherwise
    config.log_every = 50  # steps
    config.checkpoint_minutes = 10.0  # between two checkpoints within an epoch; every epoch ends with one
    config.keep = 3  # the latest checkpoints that are kept, beside the best one
    config.debug_nans = False  # stop at the operation whose result is the first NaN; slow
    config.selection = "last"  # last | source_val: the checkpoint best on held-out source identities
    config.val_fraction = 0.1  # of each source's identities, held out when selection is source_val

    config.eval = ConfigDict()
    config.eval.metric = "cosine"  # released code
    config.eval.policy = "cross-camera"  # cross-camera (Market-1501's protocol) | ignore
    config.eval.batch_size = 128
    config.eval.rerank = False  # k-reciprocal re-ranking (arXiv 1701.08398) with its k1 = 20, k2 = 6, lambda = 0.3
    config.eval.query_expansion = 0  # the k of alpha-weighted query expansion (arXiv 1711.02512), alpha = 3; 0 = none
    config.eval.far = 1e-3  # false accept rate of the verification; a common operating point, not of the paper
    return config


def override(config: ConfigDict, field: str, text: str) -> None:
    """Sets the field named by its path ('data.height') to the value of `text`. A tuple is written a,b.

    Raises UserError for an unknown field and for a text of another type.
    """
    example = get(metabin(), field)
    if isinstance(example, ConfigDict):
        raise UserError(f"config.{field} is a group: set its fields, such as config.{field}.{next(iter(example))}")
    if field == "preset":
        raise UserError("config.preset only records the choice: make it by --config=NAME:PRESET")
    try:
        value = _parse(text, example)
    except (KeyError, ValueError, csv.Error):
        raise UserError(f"config.{field} must be {KINDS[type(example)]}; got {text!r}") from None
    config.update_from_flattened_dict({field: value})


def _parse(text: str, example: Any) -> Any:
    """The value of `text`, of the example's type; elements of a tuple are numbers if the example's are."""
    if type(example) is bool:
        return {"true": True, "false": False}[text.lower()]
    if type(example) is not tuple:
        return type(example)(text)
    (values,) = csv.reader([text], skipinitialspace=True, strict=True)  # a value with a comma is quoted: "a,b",c
    return tuple(map(_number, values) if example and not isinstance(example[0], str) else values)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return int(text) if text.strip().isdecimal() else number


def get(config: ConfigDict, field: str) -> Any:
    """The value of the field of this path ('data.height'). Raises UserError if there is none."""
    path = "config"
    for name in field.split("."):
        if not isinstance(config, ConfigDict):
            raise UserError(f"{path} is no group: it has no field {name!r}")
        if name not in config:
            raise UserError(f"{path} has no field {name!r}: {meant(name, config)}")
        config, path = config[name], f"{path}.{name}"
    return config


def check(config: ConfigDict) -> None:
    """Raises UserError for the first value that cannot work. Reads no data."""
    _check_fields(config, metabin(), "config")

    def must(what: str, holds: Callable[[Any], bool], *fields: str) -> None:
        for field in fields:
            if not holds(value := get(config, field)):
                raise UserError(f"config.{field} must {what}; got {value!r}")

    def name_some_of(allowed: Collection[str], *fields: str) -> None:
        what = f"name some of {', '.join(allowed)}, each once"
        must(what, lambda v: v and _unique(v) and {*v} <= {*allowed}, *fields)

    if config.init == WEIGHTS_NEEDED:
        raise UserError(
            "this config starts from pretrained weights: give --config.init=FILE, a .pth or .safetensors file such as "
            "torchvision's https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth, timm's or torchreid's, or "
            "--config.init= for random ones"
        )
    for field, allowed in CHOICES.items():
        must(f"be one of {', '.join(allowed)}", allowed.__contains__, field)
    try:
        reid.create(config.model.name, num_classes=1)
    except UserError as error:
        raise UserError(f"config.model.name: {error}") from None
    for low, least in LEAST.items():
        must(f"be {low} or more", partial(le, low), *least)  # nan is not
    must(f"be {MOST_SEED} or less", partial(ge, MOST_SEED), "seed")
    must("be less than 1", lambda v: v < 1, "optimizer.momentum", "loss.smoothing")
    must(f"be {config.meta.beta_low} or more", partial(le, config.meta.beta_low), "meta.beta_high")
    held_out = ("val_fraction",) if config.selection == "source_val" else ()
    must("lie between 0 and 1", lambda v: 0 < v < 1, *held_out, "eval.far")
    name_some_of(SPLITS, "data.train_splits")
    name_some_of(LOSSES, "loss.base", "meta.train_losses", "meta.test_losses")
    domains = ("data.train_domains", "data.eval_domains")
    must("name domains, each once", lambda v: all(isinstance(name, str) for name in v) and _unique(v), *domains)
    must("hold numbers", lambda v: all(isinstance(epoch, int | float) for epoch in v), "optimizer.decay_epochs")
    must(f"hold numbers up to {MOST}", lambda v: all(abs(epoch) <= MOST for epoch in v), "optimizer.decay_epochs")
    if (config.eval.rerank or config.eval.query_expansion) and config.eval.metric != "cosine":
        raise UserError(
            f"config.eval.metric is {config.eval.metric!r}, but re-ranking and query expansion know only directions: "
            "choose cosine"
        )
    if config.steps_per_dispatch > 1 and not config.data.resident:
        raise UserError(
            f"config.steps_per_dispatch is {config.steps_per_dispatch}, but images from the host come step by step: "
            "set it to 1, or --config.data.resident=True"
        )
    if config.debug_nans and config.data.resident:
        raise UserError("config.debug_nans cannot look into a resident set's steps: set config.data.resident to False")
    if config.data.protocol:
        _check_protocol(config)


def _check_fields(config: ConfigDict, known: ConfigDict, path: str) -> None:
    """That `config` has the fields of `known`, each of its type."""
    for name in config:
        if name not in known:
            raise UserError(f"{path} has no field {name!r}: {meant(name, known)}")
    for name, example in known.items():
        if name not in config:
            raise UserError(f"{path}.{name} is missing: start from metabin_jax.training.config.metabin()")
        value, field = config[name], f"{path}.{name}"
        if isinstance(example, ConfigDict) and isinstance(value, ConfigDict):
            _check_fields(value, example, field)
        elif type(value) is not type(example) and not (type(example) is float and type(value) is int):
            kind = KINDS.get(type(example), "a group of fields")
            raise UserError(f"{field} must be {kind}; got {value!r}")
        elif type(value) is float and math.isinf(value):
            raise UserError(f"{field} must be finite; got {value}")
        elif type(value) is int and abs(value) > MOST and field != "config.seed":
            raise UserError(f"{field} must be {MOST} or less; got {value}")
        elif not is_utf8("".join(map(str, value if isinstance(value, tuple) else [value]))):
            raise UserError(f"{field} is {value!a}, which the files of a run cannot hold: use a name in UTF-8")


def _unique(values: tuple) -> bool:
    return len(set(values)) == len(values)


def _check_protocol(config: ConfigDict) -> None:
    """That published numbers do not come to stand beside those of another benchmark."""
    data, protocol = config.data, protocols.load(config.data.protocol)
    settings = {"sources": "train_domains", "source_splits": "train_splits", "domain_by": "domain_by"}
    for name, field in settings.items():
        if data[field] != (expected := getattr(protocol, name)):
            raise UserError(
                f"config.data.{field} is {data[field]!r}, but {expected!r} in the protocol {protocol.name}: for an "
                "experiment of your own, set config.data.protocol to ''"
            )
    others = sorted(set(data.eval_domains) - set(protocol.targets))
    if others:
        raise UserError(
            f"config.data.eval_domains has {others[0]!r}, which is no target of the protocol {protocol.name} "
            f"({', '.join(protocol.targets)}): leave it out, or set config.data.protocol to ''"
        )
