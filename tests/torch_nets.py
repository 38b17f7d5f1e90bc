"""The networks of the PyTorch twin: normalisation layers, backbones, head, and weights taken over from Flax.

BN and IN run separately and are then mixed, as a PyTorch user would write them; images are NCHW. Submodules
bear the names of their Flax counterparts, so that a Flax path is a PyTorch name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchInstanceNorm(nn.Module):
    """Eq. 1: rho * BN(x) + (1 - rho) * IN(x), each branch with its own affine."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.instance = nn.InstanceNorm2d(channels, affine=True)
        self.rho = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        rho = self.rho.view(1, -1, 1, 1)
        return rho * self.bn(x) + (1 - rho) * self.instance(x)


class SharedBatchInstanceNorm(nn.Module):
    """BIN: the two normalised branches are mixed first, then share one affine."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, affine=False)
        self.instance = nn.InstanceNorm2d(channels)
        self.rho = nn.Parameter(torch.ones(channels))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        rho, weight, bias = (v.view(1, -1, 1, 1) for v in (self.rho, self.weight, self.bias))
        return (rho * self.bn(x) + (1 - rho) * self.instance(x)) * weight + bias


class HalfNorm(nn.Module):
    """BN on the first half of the channels, IN on the rest."""

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2
        self.bn = nn.BatchNorm2d(self.half)
        self.instance = nn.InstanceNorm2d(channels - self.half, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.bn(x[:, : self.half]), self.instance(x[:, self.half :])], dim=1)


class InstanceBatchNorm(HalfNorm):
    """IBN: IN on the first half of the channels, BN on the rest."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.instance = nn.InstanceNorm2d(self.half, affine=True)
        self.bn = nn.BatchNorm2d(channels - self.half)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.instance(x[:, : self.half]), self.bn(x[:, self.half :])], dim=1)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "metabin": BatchInstanceNorm,
    "bin": SharedBatchInstanceNorm,
    "bn": nn.BatchNorm2d,
    "in": partial(nn.InstanceNorm2d, affine=True),
    "half": HalfNorm,
}

# A layer from its number of channels and its depth in (0, 1].
Norm = Callable[[int, float], nn.Module]


def norm_factory(name: str) -> Norm:
    """One of LAYERS everywhere, or `dualnorm`: IN in the first two thirds of the stages, BN in the rest."""
    if name == "dualnorm":
        return lambda channels, depth: LAYERS["in" if depth < 0.7 else "bn"](channels)
    return lambda channels, depth: LAYERS[name](channels)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, hidden: int, norm: Callable, act: type, expand: bool):
        super().__init__()
        if expand:
            self.expand, self.expand_norm = conv(inputs, hidden), norm(hidden)
        self.depthwise, self.depthwise_norm = conv(hidden, hidden, 3, stride, groups=hidden), norm(hidden)
        self.project, self.project_norm = conv(hidden, outputs), norm(outputs)
        self.act, self.expands, self.residual = act(), expand, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.expand_norm(self.expand(x))) if self.expands else x
        y = self.act(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.residual else y


def round_to_eight(channels: float) -> int:
    """The nearest multiple of 8, the next one up where that loses more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


MOBILENET_STAGES = (  # expansion t, channels c, blocks n, stride s
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)


def mobilenetv2(
    norm: Norm,
    width: float = 1.0,
    standard: bool = False,
    stages: Iterable[tuple[int, int, int, int]] = MOBILENET_STAGES,
    stem: int = 32,
    head: int = 1280,
    act: type = nn.ReLU6,
) -> nn.Sequential:
    """Paper variant (truncated channels, every block expands) or the standard one; last stride 1 in both."""
    size = round_to_eight if standard else int
    places = len(tuple(stages)) + 2
    net, inputs = nn.Sequential(), size(stem * width)
    net.add_module("stem", conv(3, inputs, 3, 2))
    net.add_module("stem_norm", norm(inputs, 1 / places))
    net.add_module("stem_act", act())
    for place, (expansion, channels, blocks, stride) in enumerate(stages, start=2):
        for block in range(blocks):
            outputs, hidden = size(channels * width), inputs * expansion
            layer = partial(norm, depth=place / places)
            step = stride if block == 0 else 1
            residual = InvertedResidual(inputs, outputs, step, hidden, layer, act, expansion > 1 or not standard)
            net.add_module(f"stage{place}_block{block}", residual)
            inputs = outputs
    outputs = size(head * max(1.0, width))
    net.add_module("head", conv(inputs, outputs))
    net.add_module("head_norm", norm(outputs, 1.0))
    net.add_module("head_act", act())
    return net


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, norm: Callable):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.norm1 = conv(inputs, width), norm(width)
        self.conv2, self.norm2 = conv(width, width, 3, stride), norm(width)
        self.conv3, self.norm3 = conv(width, outputs), norm(outputs)
        self.reshapes = stride > 1 or inputs != outputs
        if self.reshapes:
            self.shortcut, self.shortcut_norm = conv(inputs, outputs, 1, stride), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return F.relu(y + (self.shortcut_norm(self.shortcut(x)) if self.reshapes else x))


def resnet50(norm: Norm) -> nn.Sequential:
    """torchvision's layout, stride on the 3 x 3; last stride 1."""
    net, inputs = nn.Sequential(), 64
    net.add_module("stem", conv(3, 64, 7, 2))
    net.add_module("stem_norm", norm(64, 1 / 5))
    net.add_module("stem_act", nn.ReLU())
    net.add_module("pool", nn.MaxPool2d(3, 2, 1))
    for place, (width, blocks, stride) in enumerate(((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 1)), start=2):
        for block in range(blocks):
            layer = partial(norm, depth=place / 5)
            bottleneck = Bottleneck(inputs, width, stride if block == 0 else 1, layer)
            net.add_module(f"stage{place}_block{block}", bottleneck)
            inputs = 4 * width
    return net


class ReID(nn.Module):
    """Average pooling, BNNeck and classifier without bias: image -> (feature, embedding, logits)."""

    def __init__(self, backbone: nn.Module, features: int, num_classes: int):
        super().__init__()
        self.backbone = backbone
        self.bnneck = nn.BatchNorm1d(features)
        self.bnneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(features, num_classes, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feature = self.backbone(image).mean((2, 3))
        embedding = self.bnneck(feature)
        return feature, embedding, self.classifier(embedding)


def build(name: str, num_classes: int, norm: str = "metabin", **kw: Any) -> ReID:
    """`resnet50`, `mobilenetv2_W` (paper variant of width W), `mobilenetv2_standard_W`; kw: mobilenetv2's."""
    if norm == "ibn_a":
        return with_ibn(build(name, num_classes, "bn", **kw))
    if name == "resnet50":
        return ReID(resnet50(norm_factory(norm)), 2048, num_classes)
    variant, width = name.removeprefix("mobilenetv2_").rpartition("_")[::2]
    backbone = mobilenetv2(norm_factory(norm), float(width), standard=variant == "standard", **kw)
    return ReID(backbone, backbone.head.out_channels, num_classes)


def with_ibn(net: ReID) -> ReID:
    """IBN-a: the first norm layer of every block becomes half IN, except in the last stage."""
    blocks = {name: block for name, block in net.backbone.named_children() if name.startswith("stage")}
    last = max(name.partition("_")[0] for name in blocks)
    for name, block in blocks.items():
        first = next(own for own, module in block.named_children() if isinstance(module, nn.BatchNorm2d))
        if not name.startswith(last):
            setattr(block, first, InstanceBatchNorm(getattr(block, first).num_features))
    return net


FLAX_LEAVES = {
    "bn_scale": "bn.weight",
    "bn_bias": "bn.bias",
    "in_scale": "instance.weight",
    "in_bias": "instance.bias",
    "rho": "rho",
    "scale": "weight",
    "bias": "bias",
    "kernel": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def from_flax(tree: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The leaves of a Flax collection, or of a tree shaped like one, by `model`'s names and axis order."""
    known, named = model.state_dict(), {}
    for path, value in _leaves(tree):
        value = np.array(value)
        value = value.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, range(value.ndim)))
        owner = [("instance" if part == "in" else part) for part in path[:-1]]
        names = [".".join([*owner, *middle, FLAX_LEAVES[path[-1]]]) for middle in ((), ("bn",))]
        name = names[0] if names[0] in known else names[1]
        if known[name].shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(known[name].shape)} in the twin, {value.shape} in Flax")
        named[name] = torch.from_numpy(np.ascontiguousarray(value))
    return named


def load_flax(model: nn.Module, variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Copies all collections of a Flax model into `model`; ValueError where something gets no value."""
    values = {}
    for collection in variables.values():
        values |= from_flax(collection, model)
    missing, _ = model.load_state_dict(values, strict=False)
    forgotten = [name for name in missing if not name.endswith(("num_batches_tracked", "bnneck.bias"))]
    if forgotten:
        raise ValueError(f"Flax has no value for {forgotten}")
