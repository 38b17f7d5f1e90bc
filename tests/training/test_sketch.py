"""A training without its data: what it will compile."""

import jax

from metabin_jax.models import reid
from metabin_jax.training.config import metabin
from metabin_jax.training.sketch import batch_shapes, describe, sketch, variants

VARIANTS = ["bfloat16, first order", "bfloat16, exact", "float32, first order", "float32, exact"]


def test_batches_of_the_presets():
    def sizes(config):
        return [None if raw is None else len(raw.pid) for raw in batch_shapes(sketch(config, num_ids=100))]

    assert [sizes(metabin(preset)) for preset in ("paper", "official")] == [[80, 48, 32]] * 2
    config = metabin()
    config.data.train_domains = ("a", "b", "c")
    assert sizes(config) == [48, 32, 16]
    config.method = "bn"
    assert sizes(config) == [48, None, None]


def test_the_classifier_has_the_identities():
    config = metabin()
    config.model.name = "tiny"
    params = jax.eval_shape(sketch(config, num_ids=77).init).params
    assert params["classifier"]["kernel"].shape == (reid.BACKBONES["tiny"].keywords["head"], 77)


def test_variants():
    assert [name for name, _ in variants(metabin())] == VARIANTS
    assert [(c.model.dtype, c.meta.first_order) for _, c in variants(metabin())][1:3] == [
        ("bfloat16", False),
        ("float32", True),
    ]
    config = metabin()
    config.method = "bn"
    assert [name for name, _ in variants(config)] == ["bfloat16", "float32"]


def test_description():
    config = metabin()
    assert describe(sketch(config, num_ids=1234)) == (
        "metabin, mobilenetv2_1.4, 256 x 128, 80 + 48 + 32 images a step, 1,234 identities"
    )
    config.method = "bn"
    assert describe(sketch(config, num_ids=99)) == "bn, mobilenetv2_1.4, 256 x 128, 80 images a step, 99 identities"
