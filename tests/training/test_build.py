import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import DOMAINS, draw_folder, tiny_config

from metabin_jax.algorithm import MetaBIN
from metabin_jax.baselines import MLDG, Joint, LearnedRho
from metabin_jax.baselines.bau import BAU, BalancedMetaBIN
from metabin_jax.data.sampler import DomainSampler, EpochSampler
from metabin_jax.learner import Batch, Learner, Outputs, clip_plain, clip_straight_through
from metabin_jax.norm import BatchInstanceNorm, BatchNorm, HalfNorm, InstanceNorm, SharedBatchInstanceNorm
from metabin_jax.runtime.errors import UserError
from metabin_jax.training import build, train
from metabin_jax.training.config import metabin
from metabin_jax.training.workdir import settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("build") / "data")


def built(config):
    return build.build(build.resolve(config))


def test_the_sources_are_what_is_not_evaluated_on(folder):
    config = tiny_config(folder)
    before = settings(config)
    resolved = build.resolve(config)
    assert resolved.data.train_domains == DOMAINS[:3]
    assert settings(config) == before, "the caller's config must stay as it was"
    config.data.train_domains = ("south", "east")
    assert build.resolve(config).data.train_domains == ("south", "east")


def test_paths_hold_from_anywhere(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    config = tiny_config(folder)
    config.data.path, config.data.cache_dir = f"~/{folder.name}", "~/cache"
    resolved = build.resolve(config)
    assert resolved.data.path == str(folder)
    assert resolved.data.cache_dir == str(folder.parent / "cache")
    monkeypatch.chdir(folder.parent)
    config.data.path = folder.name
    assert build.resolve(config).data.path == str(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.path", "/nowhere", "Data folder /nowhere does not exist"),
        ("data.train_domains", ("east", "west"), "domain 'west' is in both data.train_domains and data.eval_domains"),
        ("data.train_domains", ("east", "west2"), "Domain 'west2' is not in"),
        ("data.eval_domains", DOMAINS, "every domain is in config.data.eval_domains: leave one or more to train on"),
        ("batch.meta_train_domains", 3, "meta_train_domains is 3, but there are 3 source domains (east, north, south)"),
        ("data.train_domains", ("east",), "there is one source domain (east), but metabin splits the domains"),
        ("data.train_splits", ("query",), "domain 'east' has no image of split query: leave it out"),
        ("batch.ids_per_domain", 5, "Domain east has 4 identities to train on, but a batch takes 5 of each domain"),
    ],
)
def test_what_the_data_cannot_give(folder, field, value, message):
    config = tiny_config(folder)
    group, name = field.split(".")
    config[group][name] = value
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        built(config)
    assert message in str(error.value)


def test_too_few_identities_for_the_official_sampler(folder):
    config = tiny_config(folder, "official")
    config.batch.ids_per_batch = 13
    with pytest.raises(ValueError, match="There are 12 identities to train on, but a batch takes 13"):
        built(config)


def test_a_domain_too_small_once_identities_are_held_out(folder):
    config = tiny_config(folder)
    config.selection = "source_val"
    assert built(config).data.num_ids == 6
    config.batch.ids_per_domain = 3
    with pytest.raises(ValueError, match="Domain east has 2 identities to train on, but a batch takes 3"):
        built(config)


def test_held_out_identities_need_two_cameras_or_no_cameras(tmp_path):
    config = tiny_config(draw_folder(tmp_path / "data", cameras=1, per_camera=3))
    config.selection = "source_val"
    with pytest.raises(ValueError, match=r"no held-out identity of domain 'east' is seen by two cameras.*ignore"):
        built(config)
    config.eval.policy = "ignore"
    assert built(config).data.held_out.keys() == set(DOMAINS[:3])


def test_the_presets_sample_as_they_say(folder):
    paper, official = built(tiny_config(folder)), built(tiny_config(folder, "official"))
    assert isinstance(paper.base, DomainSampler)
    assert np.bincount(paper.data.domain[paper.base.base(0)]).tolist() == [4, 4, 4]
    assert isinstance(official.base, EpochSampler)
    assert len(official.base.base(0)) == 12
    for run in (paper, official):
        meta_train, meta_test = run.meta.meta(0)
        assert (len(meta_train), len(meta_test)) == (8, 4)


def test_an_epoch_is_every_image_once(folder):
    config = tiny_config(folder)
    config.steps_per_epoch = 0
    assert built(config).steps_per_epoch == 48 // 12


@pytest.mark.parametrize(
    ("method", "kind", "layer"),
    [
        ("metabin", MetaBIN, BatchInstanceNorm),
        ("bin", LearnedRho, SharedBatchInstanceNorm),
        ("bn", Learner, BatchNorm),
        ("in", Learner, InstanceNorm),
        ("half", Learner, HalfNorm),
        ("dualnorm", Learner, InstanceNorm),
        ("bn_mldg", MLDG, BatchNorm),
        ("bin_mldg", MLDG, SharedBatchInstanceNorm),
        ("metabin_shared", MetaBIN, SharedBatchInstanceNorm),
        ("metabin_joint", Joint, BatchInstanceNorm),
        ("ibn_a", Learner, BatchNorm),
        ("mixstyle", Learner, BatchNorm),
        ("metabin_mixstyle", MetaBIN, BatchInstanceNorm),
        ("bau", BAU, BatchNorm),
        ("metabin_bau", BalancedMetaBIN, BatchInstanceNorm),
    ],
)
def test_the_method_decides_on_the_learner_and_the_layer(folder, method, kind, layer):
    config = tiny_config(folder)
    config.method = method
    run = built(config)
    assert type(run.learner) is kind
    assert run.learner.model.backbone.norm.shallow is layer
    assert run.learner.model.backbone.mixes_styles == (method in ("mixstyle", "metabin_mixstyle"))
    assert (run.meta is not None) == (kind in (MetaBIN, MLDG, Joint, BalancedMetaBIN))
    state = jax.eval_shape(run.init)
    assert bool(state.rho) == (layer in (BatchInstanceNorm, SharedBatchInstanceNorm))
    assert state.params["classifier"]["kernel"].shape == (32, 12)


def test_sgd_is_decay_then_momentum_then_alpha_and_biases_go_faster():
    settings = tiny_config("", "official").optimizer
    assert settings.bias_lr_factor == 2
    params = {"kernel": np.array([1.0, -2.0]), "bn_bias": np.array([0.5]), "scale": np.array([3.0])}
    grads = {"kernel": np.array([0.3, 0.1]), "bn_bias": np.array([-0.2]), "scale": np.array([0.0])}
    optimizer = build.sgd(lambda step: 0.1 / (1 + step), settings)
    state = optimizer.init(params)
    expected, velocity = dict(params), dict.fromkeys(params, 0.0)
    for step in range(3):
        updates, state = optimizer.update(grads, state, params)
        params = {name: params[name] + updates[name] for name in params}
        for name in expected:  # PyTorch's rule, by hand
            velocity[name] = 0.9 * velocity[name] + grads[name] + 5e-4 * expected[name]
            factor = 2 if name == "bn_bias" else 1
            expected[name] = expected[name] - factor * 0.1 / (1 + step) * velocity[name]
    for name in expected:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-6)


def test_the_schedules_count_in_epochs(folder):
    config = tiny_config(folder)
    config.optimizer.warmup_epochs, config.optimizer.decay_epochs = 1, (4, 6)
    alpha = build.alpha_schedule(config.optimizer, steps_per_epoch=10)
    np.testing.assert_allclose([alpha(0), alpha(5), alpha(10), alpha(39)], [1e-4, 0.00505, 0.01, 0.01], rtol=1e-5)
    np.testing.assert_allclose([alpha(40), alpha(60)], [0.001, 0.0001], rtol=1e-5)
    beta = built(config).learner.beta  # a cycle of 2 epochs of 3 steps
    np.testing.assert_allclose([beta(0), beta(3), beta(6)], [0.001, 0.1, 0.001], rtol=1e-5)


def test_meta_learning_starts_when_the_preset_says(folder):
    paper, official = (built(tiny_config(folder, preset)).learner.gamma for preset in ("paper", "official"))
    assert float(paper(0)) == pytest.approx(0.1)
    assert [float(official(step)) for step in (0, 8, 9, 10)] == pytest.approx([0, 0, 0.1, 0.1])


def test_loss_settings_reach_the_losses(folder):
    paper, official = tiny_config(folder), tiny_config(folder, "official")
    paper.loss.margin, paper.loss.smoothing = 4.0, 0.0
    feature_ND = jnp.array([[1.0, 0.0], [0.0, 3.0]])
    label_N = jnp.array([0, 0])

    def scatter(config):
        loss = dict(built(config).learner.meta_train_losses)["scatter"]
        return float(loss(Outputs(feature_ND, None, None), Batch(None, label_N, label_N)))

    # The centroid is that of the features, along (1, 3), or that of the normalised ones, along (1, 1).
    assert scatter(paper) == pytest.approx(2 / 10**0.5)
    assert scatter(official) == pytest.approx(1 / 2**0.5)

    learner = built(paper).learner
    batch = Batch(None, jnp.array([0, 1]), label_N)
    for terms in (learner.base_losses, learner.meta_train_losses, learner.meta_test_losses):
        value = dict(terms)["triplet"](Outputs(feature_ND, None, None), batch)
        assert float(value) == pytest.approx(4 - 10**0.5, rel=1e-5)
    outputs = Outputs(None, None, jnp.array([[0.0, np.log(3.0)]]))
    value = dict(learner.base_losses)["cross_entropy"](outputs, Batch(None, jnp.array([1]), None))
    assert float(value) == pytest.approx(-np.log(3 / 4), rel=1e-6)


@pytest.mark.parametrize(("sources", "meta_train"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (8, 4)])
def test_half_of_the_domains_are_meta_train(tmp_path, sources, meta_train):
    """3 of 5 as in Sec. 4.3; 3 of 6 and 4 of 8 as in the supplement."""
    names = tuple(f"d{number}" for number in range(sources))
    config = tiny_config(draw_folder(tmp_path / "data", names, ids=2, cameras=1))
    config.data.eval_domains = ()
    config.batch.meta_train_domains = 0
    run = built(config)
    train, test = run.meta.meta(0)
    assert (len(train), len(test)) == (4 * meta_train, 4 * (sources - meta_train))


def test_two_domains_go_without_the_shuffle_loss(folder):
    config = tiny_config(folder)
    config.batch.meta_train_domains = 0
    three = built(config)
    assert [name for name, _ in three.learner.meta_train_losses] == ["scatter", "shuffle", "triplet"]
    assert "shuffle" not in train.describe(three)
    config.data.train_domains = ("east", "north")
    two = built(config)
    assert [name for name, _ in two.learner.meta_train_losses] == ["scatter", "triplet"]
    assert train.describe(two).endswith(
        "1 meta-train and 1 meta-test, without the shuffle loss, which needs two meta-train domains"
    )


def names(terms):
    return [name for name, _ in terms]


def test_the_config_names_the_losses(folder):
    """Rows of Tables 2 and 3."""
    config = tiny_config(folder)
    learner = built(config).learner
    assert names(learner.base_losses) == ["cross_entropy", "triplet"]
    assert names(learner.meta_test_losses) == ["triplet"]
    config.loss.base = ("cross_entropy",)
    config.meta.train_losses, config.meta.test_losses = ("scatter", "cross_entropy"), ("cross_entropy",)
    learner = built(config).learner
    assert names(learner.base_losses) == ["cross_entropy"]
    assert names(learner.meta_train_losses) == ["scatter", "cross_entropy"]
    assert names(learner.meta_test_losses) == ["cross_entropy"]


def test_the_config_names_the_clip(folder):
    config = tiny_config(folder)
    assert built(config).learner.inner_clip is clip_straight_through
    config.meta.clip = "plain"
    assert built(config).learner.inner_clip is clip_plain


def test_mldg_has_the_base_losses_for_meta_losses(folder):
    config = tiny_config(folder)
    config.method = "bn_mldg"
    config.loss.base = ("cross_entropy",)
    learner = built(config).learner
    assert names(learner.base_losses) == ["cross_entropy"]
    assert learner.meta_train_losses == learner.meta_test_losses == learner.base_losses


def test_the_shuffle_loss_alone_needs_two_meta_train_domains(folder):
    config = tiny_config(folder)
    config.batch.meta_train_domains = 1
    config.meta.train_losses = ("shuffle",)
    with pytest.raises(ValueError, match="the shuffle loss alone, which needs two meta-train domains"):
        built(config)


def test_a_supervised_run_evaluates_on_the_domain_it_trains_on(tmp_path):
    folder = draw_folder(tmp_path / "data", ("east",))
    draw_folder(folder / "west", ("bounding_box_train", "query", "bounding_box_test"))
    config = tiny_config(folder)
    config.data.train_domains = ("west",)
    config.data.domain_by = "camera"
    config.batch.meta_train_domains = 1
    with pytest.raises(ValueError, match="domain 'west' is in both"):
        built(config)  # the splits that train may hold queries
    config.data.train_splits = ("train",)
    assert {record.split for record in built(config).data.records} == {"train"}
    config.data.train_domains = config.data.eval_domains = ("east",)
    with pytest.raises(ValueError, match="domain 'east' is in both"):
        built(config)  # all of it is of split all: nothing would be left to train on


def test_a_single_source_trains_on_its_cameras(tmp_path):
    config = tiny_config(draw_folder(tmp_path / "data", ("mall",), cameras=4))
    config.data.eval_domains = ()
    config.data.domain_by = "camera"
    run = built(config)
    assert run.data.domains == tuple(f"mall, camera {number}" for number in (1, 2, 3, 4))
    train_rows, test_rows = run.meta.meta(0)
    assert not set(run.data.domain[train_rows]) & set(run.data.domain[test_rows])


def test_more_steps_than_the_device_counts_are_refused(tmp_path):
    config = tiny_config(draw_folder(tmp_path / "data"))
    config.epochs = config.steps_per_epoch = 2**20
    with pytest.raises(UserError, match=r"config\.epochs is 1048576, of 1048576 steps each: choose fewer"):
        build.build(build.resolve(config))
    config.epochs, config.optimizer.decay_epochs, config.meta.beta_epochs = 1, (40, 2**31 - 1, 2.5e5), 2**31 - 1
    run = build.build(build.resolve(config))
    assert float(run.learner.beta(jnp.int32(5))) > 0 and run.init().step == 0


def test_data_without_a_path_are_refused_when_they_are_read():
    with pytest.raises(UserError, match=r"config\.data\.path is empty: say where the folder data is, --config"):
        build.read(metabin())
