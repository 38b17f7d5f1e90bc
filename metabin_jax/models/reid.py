"""Backbone, average pooling, BNNeck ([31]) and classifier."""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from metabin_jax import norm as norms
from metabin_jax.models.mobilenetv2 import MobileNetV2, Stage
from metabin_jax.models.osnet import OSNETS
from metabin_jax.models.resnet import ResNet50
from metabin_jax.runtime.errors import UserError

MIN_WIDTH = 0.1  # MobileNetV2's narrowest stage, of 16 channels at width 1, keeps one

# Name -> what makes a backbone from norm=NormFactory, dtype=... and the keyword arguments of `create`. A backbone is a
# module (image_NHWC, train) -> map_NHWC. MobileNetV2 is also known by its width. Of the small nets, `small` trains from
# scratch on a CPU in a minute, `tiny` is for tests, and `stem` shows that a training runs.
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet50": ResNet50,
    **OSNETS,
    "small": partial(
        MobileNetV2, stages=(Stage(1, 24, 1, 2), Stage(3, 48, 1, 1), Stage(3, 96, 1, 2)), stem=16, head=256
    ),
    "tiny": partial(MobileNetV2, stages=(Stage(1, 8, 1, 1), Stage(2, 12, 2, 2), Stage(2, 16, 1, 2)), stem=8, head=32),
    "stem": partial(MobileNetV2, stages=(), stem=4, head=8),
}

# Sec. 4.1 does not state it; N(0, 0.001) is BNNeck's ([31]), +-1 / sqrt(D) what the released code ends up with.
CLASSIFIER_INITS = {
    "normal": nn.initializers.normal(0.001),
    "uniform": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


class ReID(nn.Module):
    """image_NHWC [N, H, W, 3] -> (feature_ND, embedding_ND, logits_NM), all float32 or wider.

    feature: pooled map, before BNNeck (triplet, scatter, shuffle). embedding: after it (retrieval, classifier).
    BNNeck is plain BN without rho, its bias frozen at 0, that is absent; the classifier has no bias. Without a neck the
    embedding is the feature, as in nets of torchreid.
    """

    backbone: nn.Module
    num_classes: int
    classifier_init: str = "normal"
    neck: bool = True

    @nn.compact
    def __call__(self, image_NHWC: jax.Array, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        chex.assert_shape(image_NHWC, (None, None, None, 3), custom_message="images are [N, H, W, 3], channels last")
        if not jnp.issubdtype(image_NHWC.dtype, jnp.floating):
            raise TypeError(f"images are {image_NHWC.dtype}: a net takes floats, as data.augment.normalise makes them")
        map_NHWC = self.backbone(image_NHWC, train)
        map_NHWC = map_NHWC.astype(jnp.promote_types(map_NHWC.dtype, jnp.float32))
        feature_ND = map_NHWC.mean((1, 2))
        embedding_ND = feature_ND
        if self.neck:
            neck = norms.BatchNorm(use_bias=False, name="bnneck")
            embedding_ND = neck(feature_ND[:, None, None, :], train).squeeze((1, 2))
        kernel_init = CLASSIFIER_INITS[self.classifier_init]
        classifier = nn.Dense(self.num_classes, use_bias=False, kernel_init=kernel_init, name="classifier")
        return feature_ND, embedding_ND, classifier(embedding_ND)


def create(
    name: str, num_classes: int, norm: str = "metabin", dtype: jnp.dtype | None = None,
    classifier_init: str = "normal", neck: bool = True, **kw: Any,
) -> ReID:  # fmt: skip
    """A model by name.

    name: 'mobilenetv2_W' (paper variant at any width W, e.g. mobilenetv2_1.4), 'mobilenetv2_standard_W' or one of
    BACKBONES. norm: one of norm.LAYERS. dtype: compute type (None: that of the image); params, rho, moments, features
    and logits stay float32. neck: whether there is a BNNeck. kw goes to the backbone. Raises UserError for an unknown
    name or a kw that the backbone does not have.
    """
    mobilenet = re.fullmatch(r"mobilenetv2_(standard_)?(\d+(?:\.\d+)?)", name)
    backbone = BACKBONES.get(name)
    if mobilenet and float(mobilenet[2]) >= MIN_WIDTH:
        backbone = partial(MobileNetV2, width=float(mobilenet[2]), standard=bool(mobilenet[1]))
    if backbone is None:
        raise UserError(
            f"model must be mobilenetv2_W or mobilenetv2_standard_W with a width W of {MIN_WIDTH} or more, or one of "
            f"{', '.join(BACKBONES)}; got {name!r}"
        )
    kind: Any = getattr(backbone, "func", backbone)  # within a partial
    fields = {field.name for field in dataclasses.fields(kind)}
    if unknown := [setting for setting in kw if setting not in fields]:
        raise UserError(f"the net {name} has no {unknown[0]}, which this needs: choose another net or method")
    if classifier_init not in CLASSIFIER_INITS:
        raise ValueError(f"classifier_init must be one of {', '.join(CLASSIFIER_INITS)}; got {classifier_init!r}")
    return ReID(backbone(norm=norms.create(norm, dtype), dtype=dtype, **kw), num_classes, classifier_init, neck)
