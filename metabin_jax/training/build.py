"""Builds what a config describes: data, samplers, model, optimiser and learner."""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict
from ml_collections import ConfigDict

from metabin_jax import models, schedules
from metabin_jax.baselines import MLDG, Joint
from metabin_jax.data import dataset
from metabin_jax.data.dataset import TrainingSet
from metabin_jax.data.records import Record
from metabin_jax.data.sampler import DomainSampler, EpochSampler, MetaSampler
from metabin_jax.learner import Learner, Losses, TrainState, clip_plain, clip_straight_through
from metabin_jax.runtime.devices import first_before_others
from metabin_jax.runtime.errors import UserError
from metabin_jax.training import config as configuration
from metabin_jax.training.methods import LOSSES, METHODS


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a config describes except the images."""

    config: ConfigDict
    data: TrainingSet
    base: DomainSampler | EpochSampler
    meta: MetaSampler | None
    learner: Learner
    steps_per_epoch: int

    @property
    def key(self) -> jax.Array:
        """The key of all that is random on the device."""
        return jax.random.key(self.config.seed)

    def rows(self, step: int) -> list[np.ndarray]:
        """The rows of `data` that a step sees: of X_B and, with meta-learning, of X_S and X_T."""
        return [self.base.base(step), *(self.meta.meta(step) if self.meta else ())]

    def init(self) -> TrainState:
        """A fresh state, made by one program: the optimiser's zeros alone would be one for every shape."""
        image = jnp.zeros((1, self.config.data.height, self.config.data.width, 3))
        return jax.jit(self.learner.init)(self.key, image)


def checked(config: ConfigDict) -> ConfigDict:
    """A copy with absolute paths. Raises ValueError for a config that cannot work."""
    configuration.check(config)
    config = config.copy_and_resolve_references()
    for group, field in ((config, "init"), (config.data, "path"), (config.data, "cache_dir")):
        if group[field]:
            group[field] = os.path.abspath(os.path.expanduser(group[field]))
    return config


def resolve(config: ConfigDict) -> ConfigDict:
    """The checked config of a training, with the sources named. Raises ValueError or FileNotFoundError."""
    config = checked(config)
    data = config.data
    for domain in sorted(set(data.train_domains) & set(data.eval_domains)):
        marks = {record.split for record in read(config, (domain,))}
        if data.train_splits != ("train",) or not marks > {"train"}:
            raise UserError(
                f"domain {domain!r} is in both data.train_domains and data.eval_domains: choose one, or train on its "
                "split train alone (--config.data.train_splits=train), where it has other splits too"
            )
    if not data.train_domains:
        names = dict.fromkeys(record.domain for record in read(config))
        data.train_domains = tuple(name for name in names if name not in data.eval_domains)
    if not data.train_domains:
        raise UserError("every domain is in config.data.eval_domains: leave one or more to train on")
    return config


def read(config: ConfigDict, domains: Sequence[str] = ()) -> list[Record]:
    """The records of `domains`, or of all, under the config's data settings. Raises UserError without a path."""
    data = config.data
    if data.source != "synthetic" and not data.path:
        raise UserError(f"config.data.path is empty: say where the {data.source} data is, --config.data.path=...")
    return dataset.read(data.source, str(data.identities) if data.source == "synthetic" else data.path, domains)


def load_images(config: ConfigDict, records: Sequence[Record]) -> np.ndarray:
    """The images of `records` under the config's data settings, uint8 [n, H, W, 3]."""
    data = config.data
    size = (data.height, data.width)
    return first_before_others(lambda: dataset.load_images(data.source, records, size, data.cache_dir))


def build(config: ConfigDict, data: TrainingSet | None = None) -> Run:
    """Sets up the method of a resolved config; opens no image. Raises ValueError or FileNotFoundError.

    data: what to train on, by default what the config names.
    """
    data = data or read_training_set(config)
    base, meta = build_samplers(config, data)
    steps_per_epoch = config.steps_per_epoch or base.steps_per_epoch
    if config.epochs * steps_per_epoch > configuration.MOST:
        raise UserError(
            f"config.epochs is {config.epochs}, of {steps_per_epoch} steps each: choose fewer, as a training has "
            f"{configuration.MOST} steps or less"
        )
    learner = build_learner(config, data.num_ids, steps_per_epoch, with_shuffle=meta is None or meta.num_meta_train > 1)
    return Run(config, data, base, meta, learner, steps_per_epoch)


def read_training_set(config: ConfigDict) -> TrainingSet:
    """What a resolved config trains on. Raises UserError if it holds out identities that cannot be scored."""
    sources = config.data.train_domains
    val_fraction = config.val_fraction if config.selection == "source_val" else 0
    data = dataset.training_set(
        read(config, sources), sources, val_fraction, config.seed, config.data.train_splits, config.data.domain_by
    )
    for source, rows in data.held_out.items():
        seen = {(data.records[row].pid, data.records[row].camid) for row in rows}
        unknown = any(camid < 0 for _, camid in seen)
        if config.eval.policy == "cross-camera" and not unknown and len(seen) == len({pid for pid, _ in seen}):
            raise UserError(
                f"no held-out identity of domain {source!r} is seen by two cameras, so source_val cannot score it: "
                "choose --config.eval.policy=ignore or --config.selection=last"
            )
    return data


def with_weights(config: ConfigDict, state: TrainState) -> tuple[TrainState, models.Report]:
    """A fresh state, or its shapes, with the weights of config.init. Raises as `models.load_torch`.

    Under config.init_in_affine = "bn" the affine of an instance branch that the file lacks is that of its batch branch.
    """
    variables = {"params": state.params, "rho": state.rho, "batch_stats": state.batch_stats}
    loaded, report = models.load_torch(config.init, variables)
    if config.init_in_affine == "bn":
        flat = flatten_dict(loaded, sep="/")
        copied = [name for name in report.kept if name.endswith(("/in_scale", "/in_bias"))]
        flat |= {name: np.array(flat[name.replace("/in_", "/bn_")]) for name in copied}
        loaded = unflatten_dict(flat, sep="/")
        kept = tuple(name for name in report.kept if name not in copied)
        report = dataclasses.replace(report, loaded=(*report.loaded, *copied), kept=kept)
    return state.replace(**loaded), report


def build_samplers(config: ConfigDict, data: TrainingSet) -> tuple[DomainSampler | EpochSampler, MetaSampler | None]:
    """The base and, for a method that splits the domains, the meta sampler."""
    batch = config.batch
    drawn = batch.images_per_id, config.seed
    by_domain = partial(DomainSampler, data.pid, data.domain, batch.ids_per_domain, *drawn, data.domains)
    by_identity = partial(EpochSampler, data.pid, batch.ids_per_batch, *drawn)
    base = by_domain() if batch.sampling == "domains" else by_identity()
    if not METHODS[config.method].splits_domains:
        return base, None
    num_domains = len(data.domains)
    if num_domains < 2:
        raise UserError(
            f"there is one source domain ({data.domains[0]}), but {config.method} splits the domains into "
            "meta-train and meta-test: give more sources, take its cameras as domains by "
            "--config.data.domain_by=camera, or choose another --config.method"
        )
    if not batch.meta_train_domains < num_domains:
        raise UserError(
            f"config.batch.meta_train_domains is {batch.meta_train_domains}, but there are {num_domains} "
            f"source domains ({', '.join(data.domains)}) and one or more must be left for meta-test: choose fewer, or "
            "0 for half of them"
        )
    return base, MetaSampler(by_domain(), batch.meta_train_domains or (num_domains + 1) // 2)


def build_model(config: ConfigDict, num_ids: int) -> models.ReID:
    """The net, with the norm layer of `config.method`."""
    settings, method = config.model, METHODS[config.method]
    return models.create(
        settings.name,
        num_ids,
        norm=method.norm,
        dtype=jnp.dtype(settings.dtype),
        classifier_init=settings.classifier_init,
        **({"mixes_styles": True} if method.mixes_styles else {}),
    )


def model_of(config: ConfigDict, variables: dict) -> models.ReID:
    """The net that a run of this config has trained, with as many identities as its variables have."""
    return build_model(config, num_ids=variables["params"]["classifier"]["kernel"].shape[1])


def build_learner(config: ConfigDict, num_ids: int, steps_per_epoch: int, with_shuffle: bool) -> Learner:
    """The learner of `config.method`, with the settings that it takes.

    with_shuffle: whether Eq. 8 may have the shuffle loss, which needs two meta-train domains. Raises UserError if no
    meta-train loss is left without it.
    """
    learner, meta = METHODS[config.method].learner, config.meta

    def loss_set(names: Sequence[str]) -> Losses:
        return tuple((name, LOSSES[name](config.loss)) for name in names)

    def gamma(step):
        return jnp.where(step >= meta.start, meta.gamma, 0.0)

    meta_train = [name for name in meta.train_losses if with_shuffle or name != "shuffle"]
    if not meta_train:
        raise UserError(
            "config.meta.train_losses is the shuffle loss alone, which needs two meta-train domains: add another loss "
            "or give more sources"
        )
    period = max(2, round(min(meta.beta_epochs * steps_per_epoch, configuration.MOST)))
    alpha = alpha_schedule(config.optimizer, steps_per_epoch)
    settings = {
        "model": build_model(config, num_ids),
        "optimizer": sgd(alpha, config.optimizer),
        "base_losses": loss_set(config.loss.base),
        "beta": schedules.triangular(meta.beta_low, meta.beta_high, period // 2, period - period // 2),
        "gamma": gamma,
        "first_order": meta.first_order,
        "meta_train_losses": loss_set(meta_train),
        "meta_test_losses": loss_set(meta.test_losses),
        "inner_clip": {"straight_through": clip_straight_through, "plain": clip_plain}[meta.clip],
        # [34] learns rho ten times as fast as the rest, without weight decay.
        "rho_optimizer": optax.sgd(lambda step: 10 * alpha(step), config.optimizer.momentum),
    }
    if issubclass(learner, MLDG):
        settings |= dict.fromkeys(("meta_train_losses", "meta_test_losses"), settings["base_losses"])
    elif issubclass(learner, Joint):
        settings["rho_optimizer"] = optax.sgd(gamma)
    return learner(**{field.name: settings[field.name] for field in dataclasses.fields(learner)})


def alpha_schedule(optimizer: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Warm-up and step decay of alpha over the steps."""
    epochs = (optimizer.warmup_epochs, *optimizer.decay_epochs)
    # No step comes after MOST.
    warmup, *boundaries = (min(epoch * steps_per_epoch, configuration.MOST) for epoch in epochs)
    return schedules.warmup_step(optimizer.alpha, warmup, boundaries, optimizer.decay, optimizer.warmup_start)


def sgd(alpha: optax.Schedule, optimizer: ConfigDict) -> optax.GradientTransformation:
    """SGD as in PyTorch: decay added to the gradient, then momentum, then alpha; biases times bias_lr_factor."""

    def is_bias(params):
        return path_aware_map(lambda path, _: str(path[-1]).endswith("bias"), params)

    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.trace(optimizer.momentum),
        optax.masked(optax.scale(optimizer.bias_lr_factor), is_bias),
        optax.scale_by_learning_rate(alpha),
    )
