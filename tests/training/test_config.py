import re
import runpy
from pathlib import Path

import jax
import pytest

from metabin_jax.training.config import check, metabin, override

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def config(**fields):
    result = metabin()
    result.data.path = "somewhere"
    for field, value in fields.items():
        group, name = field.split("__")
        with result.ignore_type():
            (result[group] if group else result)[name] = value
    return result


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_pass_with_a_path(path, preset):
    argument = f"paper,{preset}" if path.stem == "benchmark" else preset
    result = runpy.run_path(str(path))["get_config"](argument)
    assert result.preset == preset
    result.data.path = "somewhere"
    if path.stem in ("people", "finetune", "benchmark"):
        with pytest.raises(ValueError, match=r"starts from pretrained weights: give --config.init=FILE, a .pth or"):
            check(result)
        result.init = "weights.pth"
    check(result)


def test_what_the_presets_disagree_on():
    paper, official = metabin("paper"), metabin("official")
    assert (paper.batch.sampling, official.batch.sampling) == ("domains", "identities")
    # Sec. 4.1, and a tenth of it in the released code.
    assert (paper.meta.beta_low, paper.meta.beta_high) == (0.001, 0.1)
    assert (official.meta.beta_low, official.meta.beta_high) == pytest.approx((0.0001, 0.01))
    assert (paper.optimizer.bias_lr_factor, official.optimizer.bias_lr_factor) == (1, 2)
    assert (paper.loss.scatter_normalize_first, official.loss.scatter_normalize_first) == (False, True)
    assert (paper.meta.start, official.meta.start) == (0, 9)
    with pytest.raises(ValueError, match="must be one of paper, official; got 'papre'"):
        metabin("papre")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("optimizer.alpha", "1", 1.0),
        ("meta.gamma", "2e-1", 0.2),
        ("epochs", "3", 3),
        ("meta.first_order", "False", False),
        ("meta.first_order", "true", True),
        ("data.path", "", ""),
        ("data.path", "a=b c", "a=b c"),
        ("data.eval_domains", "a,b-c", ("a", "b-c")),
        ("data.eval_domains", "a, b c", ("a", "b c")),
        ("data.eval_domains", '"a,b",c', ("a,b", "c")),
        ("data.eval_domains", "7", ("7",)),
        ("data.eval_domains", "", ()),
        ("data.eval_domains", "mall", ("mall",)),
        ("data.train_splits", "train,query", ("train", "query")),
        ("optimizer.decay_epochs", "40,70", (40, 70)),
        ("optimizer.decay_epochs", "2.5, 3", (2.5, 3)),
        ("optimizer.decay_epochs", "3", (3,)),
        ("optimizer.decay_epochs", "", ()),
    ],
)
def test_override(field, text, value):
    result = metabin()
    override(result, field, text)
    got = result
    for name in field.split("."):
        got = got[name]
    assert (type(got), got) == (type(value), value)
    if isinstance(value, tuple):
        assert list(map(type, got)) == list(map(type, value))


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("sed", "1", "config has no field 'sed': did you mean seed?"),
        ("zzz", "1", "config has no field 'zzz': choose from batch, checkpoint_minutes, data, "),
        ("optimizer.alhpa", "1", "config.optimizer has no field 'alhpa': did you mean alpha?"),
        ("seed.x", "1", "config.seed is no group: it has no field 'x'"),
        ("optimizer", "1", "config.optimizer is a group: set its fields, such as config.optimizer.alpha"),
        ("preset", "official", "--config=NAME:PRESET"),
        ("seed", "1.5", "config.seed must be a whole number; got '1.5'"),
        ("seed", "9" * 5000, "config.seed must be a whole number; got '99999"),
        ("seed", "None", "config.seed must be a whole number; got 'None'"),
        ("meta.gamma", "big", "config.meta.gamma must be a number; got 'big'"),
        ("meta.first_order", "maybe", "config.meta.first_order must be True or False; got 'maybe'"),
        (
            "data.eval_domains",
            'a,"b',
            "config.data.eval_domains must be a tuple, on the command line a,b; got 'a,\"b'",
        ),
        ("optimizer.decay_epochs", "a,b", "config.optimizer.decay_epochs must be a tuple"),
        ("optimizer.decay_epochs", "40,nan", "config.optimizer.decay_epochs must be a tuple"),
        ("optimizer.decay_epochs", "(40, 70)", "config.optimizer.decay_epochs must be a tuple"),
    ],
)
def test_an_override_that_cannot_be(field, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override(metabin(), field, text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"__method": "metabn"}, "config.method must be one of bn, in, half, dualnorm, bin, metabin, bn_mldg, "),
        ({"data__source": "tfds"}, "config.data.source must be one of synthetic, folder, csv, prepared; got 'tfds'"),
        ({"batch__sampling": "x"}, "config.batch.sampling must be one of"),
        ({"__selection": "best"}, "config.selection must be one of last, source_val; got 'best'"),
        ({"eval__policy": "x"}, "config.eval.policy must be one of cross-camera, ignore"),
        ({"eval__metric": "x"}, "config.eval.metric must be one of cosine, euclidean"),
        ({"model__dtype": "float16"}, "config.model.dtype must be one of float32, bfloat16"),
        ({"meta__clip": "hard"}, "config.meta.clip must be one of straight_through, plain; got 'hard'"),
        ({"model__classifier_init": "x"}, "config.model.classifier_init must be one of normal, uniform"),
        ({"model__name": "resnet"}, "config.model.name: model must be mobilenetv2_W or"),
        ({"data__height": 31}, "config.data.height must be 32 or more; got 31"),
        ({"data__width": 16}, "config.data.width must be 32 or more; got 16"),
        ({"batch__images_per_id": 1}, "config.batch.images_per_id must be 2 or more; got 1"),
        ({"batch__ids_per_domain": 1}, "config.batch.ids_per_domain must be 2 or more; got 1"),
        ({"batch__ids_per_batch": 1}, "config.batch.ids_per_batch must be 2 or more; got 1"),
        ({"__epochs": 0}, "config.epochs must be 1 or more; got 0"),
        ({"__steps_per_dispatch": 0}, "config.steps_per_dispatch must be 1 or more; got 0"),
        (
            {"__steps_per_dispatch": 8},
            "config.steps_per_dispatch is 8, but images from the host come step by step",
        ),
        ({"__debug_nans": True, "data__resident": True}, "set config.data.resident to False"),
        ({"__log_every": 0}, "config.log_every must be 1 or more; got 0"),
        ({"eval__batch_size": 0}, "config.eval.batch_size must be 1 or more; got 0"),
        ({"eval__query_expansion": -1}, "config.eval.query_expansion must be 0 or more; got -1"),
        ({"eval__far": 0.0}, "config.eval.far must lie between 0 and 1; got 0.0"),
        ({"eval__far": float("nan")}, "config.eval.far must lie between 0 and 1; got nan"),
        ({"eval__rerank": 1}, "config.eval.rerank must be True or False; got 1"),
        ({"eval__rerank": True, "eval__metric": "euclidean"}, "config.eval.metric is 'euclidean', but re-ranking and"),
        ({"eval__query_expansion": 2, "eval__metric": "euclidean"}, "only directions: choose cosine"),
        ({"loss__margin": float("inf")}, "config.loss.margin must be finite; got inf"),
        ({"__seed": -1}, "config.seed must be 0 or more; got -1"),
        ({"__seed": 2**32}, "config.seed must be 4294967295 or less; got 4294967296"),
        ({"__seed": 2**63}, "config.seed must be 4294967295 or less; got 9223372036854775808"),
        ({"__epochs": 2**40}, "config.epochs must be 2147483647 or less; got 1099511627776"),
        ({"__steps_per_epoch": 10**20}, "config.steps_per_epoch must be 2147483647 or less; got 100000000000000000000"),
        ({"meta__start": 2**40}, "config.meta.start must be 2147483647 or less; got 1099511627776"),
        (
            {"optimizer__decay_epochs": (2**40,)},
            "config.optimizer.decay_epochs must hold numbers up to 2147483647",
        ),
        (
            {"optimizer__decay_epochs": (1e300,)},
            "config.optimizer.decay_epochs must hold numbers up to 2147483647",
        ),
        ({"data__path": "caf\udce9"}, "config.data.path is 'caf\\udce9', which the files of a run cannot hold: use"),
        (
            {"data__eval_domains": ("a", "\udcff")},
            "config.data.eval_domains is ('a', '\\udcff'), which the files of a run",
        ),
        ({"optimizer__alpha": float("nan")}, "config.optimizer.alpha must be 0 or more; got nan"),
        ({"optimizer__momentum": 1.0}, "config.optimizer.momentum must be less than 1; got 1.0"),
        ({"loss__smoothing": 1.0}, "config.loss.smoothing must be less than 1; got 1.0"),
        ({"meta__beta_high": 1e-5}, "config.meta.beta_high must be 0.001 or more; got 1e-05"),
        ({"data__protocol": "p9"}, "There is no protocol 'p9'; known are paper, "),
        ({"data__protocol": "paper"}, "config.data.train_domains is (), but ('cuhk02', 'cuhk03', 'market1501', "),
        ({"data__train_splits": ()}, "config.data.train_splits must name some of train, query, gallery, all"),
        ({"data__train_splits": ("test",)}, "config.data.train_splits must name some of"),
        (
            {"loss__base": ()},
            "some of cross_entropy, triplet, scatter, shuffle, each once; got ()",
        ),
        ({"loss__base": ("triplet", "triplet")}, "config.loss.base must name some of"),
        ({"meta__train_losses": ()}, "config.meta.train_losses must name some of cross_entropy, triplet, scatter"),
        (
            {"meta__test_losses": ("centre",)},
            "config.meta.test_losses must name some of cross_entropy, triplet",
        ),
        ({"__selection": "source_val", "__val_fraction": 0.0}, "config.val_fraction must lie between 0 and 1; got 0"),
        ({"data__eval_domains": (1,)}, "config.data.eval_domains must name domains, each once; got (1,)"),
        ({"data__train_domains": ("a", "a")}, "config.data.train_domains must name domains, each once"),
        ({"optimizer__decay_epochs": ("x",)}, "config.optimizer.decay_epochs must hold numbers; got ('x',)"),
        ({"__seed": None}, "config.seed must be a whole number; got None"),
        ({"__seed": "0"}, "config.seed must be a whole number; got '0'"),
        ({"__data": 3}, "config.data must be a group of fields; got 3"),
        ({"meta__first_order": 1}, "config.meta.first_order must be True or False; got 1"),
        ({"__stepsperepoch": 3}, "config has no field 'stepsperepoch': did you mean steps_per_epoch?"),
        ({"meta__betalow": 3.0}, "config.meta has no field 'betalow': did you mean beta_low?"),
    ],
)
def test_a_config_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        check(config(**fields))
    assert "\n" not in str(error.value)


def test_a_field_that_is_missing():
    incomplete = config()
    del incomplete.meta.gamma
    with pytest.raises(ValueError, match=r"config\.meta\.gamma is missing: start from metabin_jax\.training\.config"):
        check(incomplete)


def test_what_only_some_methods_need():
    check(config(data__source="synthetic", data__path=""))
    check(config(__val_fraction=0.0))
    check(config(eval__metric="euclidean"))
    check(config(eval__rerank=True, eval__query_expansion=2))
    check(config(meta__train_losses=("cross_entropy",), meta__test_losses=("cross_entropy",)))
    check(config(optimizer__alpha=1))  # a whole number where any will do


def test_the_largest_seed_is_none_of_a_smaller_one():
    config = metabin()
    config.data.path, config.seed = "pictures", 2**32 - 1
    check(config)
    bits = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in (2**32 - 1, 0, 2**31 - 1)]
    assert len(set(map(str, bits))) == 3
