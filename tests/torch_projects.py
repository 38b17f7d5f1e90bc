"""Nets with the attribute names of the PyTorch projects whose weights we read, so that a state dict has their names.

Written from those names alone, images are NCHW, last stride 1; widths and stages are free. Submodules stand in the
order of the data flow.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_nets import MOBILENET_STAGES, round_to_eight

CLASSES = 7


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class Named(nn.Module):
    """Submodules under given names, run one after the other."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


class Block(Named):
    """An inverted residual."""

    residual = False

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.residual else y


class Net(nn.Module):
    """image -> pooled feature; the classifier, of CLASSES, is there for its names."""

    def forward(self, x: Tensor) -> Tensor:
        return self.features_of(x).mean((2, 3))

    def features_of(self, x: Tensor) -> Tensor:
        raise NotImplementedError


Inner = Callable[..., Block]


def stages_of(stages, size, width: float, stem: int, block: Inner, numbered: dict) -> int:
    """Fills `numbered`, (stage from 0, block from 0) -> block, and returns the last number of channels."""
    inputs = stem
    for stage, (expansion, channels, blocks, stride) in enumerate(stages):
        for number in range(blocks):
            step, outputs = stride if number == 0 else 1, size(channels * width)
            made = block(inputs, outputs, expansion, step)
            made.residual = step == 1 and inputs == outputs
            numbered[stage, number] = made
            inputs = outputs
    return inputs


def by_stage(numbered: dict) -> list[nn.Sequential]:
    count = 1 + max(stage for stage, _ in numbered)
    return [nn.Sequential(*(b for (s, _), b in numbered.items() if s == stage)) for stage in range(count)]


# --- the paper's variant: torchreid, and the released MetaBIN ---


def convbn(inputs: int, outputs: int, norm: Callable, **kw: int) -> Named:
    return Named(conv=conv(inputs, outputs, **kw), bn=norm(outputs), act=nn.ReLU6())


class Torchreid(Net):
    def __init__(self, width: float = 1.0, stages=MOBILENET_STAGES, stem: int = 32, head: int = 1280):
        super().__init__()
        numbered: dict = {}
        norm = nn.BatchNorm2d

        def block(inputs, outputs, expansion, stride):
            hidden = inputs * expansion
            return Block(
                conv1=convbn(inputs, hidden, norm),
                dwconv2=convbn(hidden, hidden, norm, kernel=3, stride=stride, groups=hidden),
                conv3=nn.Sequential(conv(hidden, outputs), norm(outputs)),
            )

        self.conv1 = convbn(3, int(stem * width), norm, kernel=3, stride=2)
        last = stages_of(stages, int, width, int(stem * width), block, numbered)
        for place, stage in enumerate(by_stage(numbered), start=2):
            self.add_module(f"conv{place}", stage)
        features = int(head * max(1.0, width))
        self.conv9 = convbn(last, features, norm)
        self.classifier = nn.Linear(features, CLASSES)

    def features_of(self, x: Tensor) -> Tensor:
        for name, module in self.named_children():
            x = module(x) if name.startswith("conv") else x
        return x


class Gated(nn.Module):
    """BIN under the released names."""

    def __init__(self, channels: int):
        super().__init__()
        self.bat_n = nn.BatchNorm2d(channels)
        self.ins_n = nn.InstanceNorm2d(channels, affine=True)
        self.gate = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate.view(1, -1, 1, 1)
        return gate * self.bat_n(x) + (1 - gate) * self.ins_n(x)


class SharedGated(nn.Module):
    """BIN with one affine under the released names."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias, self.gate = (nn.Parameter(torch.ones(channels)) for _ in range(3))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        batch = F.batch_norm(x, self.running_mean, self.running_var)
        gate, weight, bias = (value.view(1, -1, 1, 1) for value in (self.gate, self.weight, self.bias))
        return (gate * batch + (1 - gate) * F.instance_norm(x)) * weight + bias


class Half(nn.Module):
    """BN on the first half of the channels, IN on the others, under the released names."""

    def __init__(self, channels: int):
        super().__init__()
        self.bat_n = nn.BatchNorm2d(channels // 2)
        self.ins_n = nn.InstanceNorm2d(channels - channels // 2, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([self.bat_n(first), self.ins_n(second)], 1)


def instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


class Released(nn.Module):
    """A released checkpoint's net: image -> (feature, embedding, logits)."""

    def __init__(self, backbone: nn.Module, features: int):
        super().__init__()
        self.register_buffer("pixel_mean", torch.full((1, 3, 1, 1), 100.0))
        self.register_buffer("pixel_std", torch.full((1, 3, 1, 1), 50.0))
        self.backbone = backbone
        self.heads = nn.Module()
        self.heads.classifier_norm = nn.BatchNorm2d(features)
        self.heads.classifier_fc = nn.Linear(features, CLASSES, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feature = self.backbone(x).mean((2, 3), keepdim=True)
        embedding = self.heads.classifier_norm(feature)[..., 0, 0]
        return feature[..., 0, 0], embedding, self.heads.classifier_fc(embedding)


def released_mobilenet(
    width: float = 1.0, stages=MOBILENET_STAGES, stem: int = 32, head: int = 1280, norm: Callable = Gated
) -> Released:
    numbered: dict = {}

    def block(inputs, outputs, expansion, stride):
        hidden = inputs * expansion
        return Block(
            conv1=convbn(inputs, hidden, norm),
            dwconv2=convbn(hidden, hidden, norm, kernel=3, stride=stride, groups=hidden),
            conv3=conv(hidden, outputs),
            bn=norm(outputs),
        )

    layers = [convbn(3, int(stem * width), norm, kernel=3, stride=2)]
    last = stages_of(stages, int, width, int(stem * width), block, numbered)
    named = {f"layer{place}": layer for place, layer in enumerate([*layers, *by_stage(numbered)], start=1)}
    features = int(head * max(1.0, width))
    return Released(Named(**named, layer9=convbn(last, features, norm)), features)


# --- the standard variant: torchvision, tonylins, timm ---


def _standard(width: float, block: Inner) -> tuple[int, list[nn.Sequential], int, int]:
    """Channels of the stem, the stages, and channels into and out of the head."""
    stem, numbered = round_to_eight(32 * width), {}
    last = stages_of(MOBILENET_STAGES, round_to_eight, width, stem, block, numbered)
    return stem, by_stage(numbered), last, round_to_eight(1280 * max(1.0, width))


class Torchvision(Net):
    """`flat`: as tonylins wrote it, a block's layers in one row instead of nested, the classifier alone."""

    def __init__(self, width: float = 1.0, flat: bool = False):
        super().__init__()

        def unit(inputs: int, outputs: int, **kw: int) -> list[nn.Module]:
            row = [conv(inputs, outputs, **kw), nn.BatchNorm2d(outputs), nn.ReLU6()]
            return row if flat else [nn.Sequential(*row)]

        def block(inputs, outputs, expansion, stride):
            hidden = inputs * expansion
            row = unit(inputs, hidden) if expansion > 1 else []
            row += unit(hidden, hidden, kernel=3, stride=stride, groups=hidden)
            return Block(conv=nn.Sequential(*row, conv(hidden, outputs), nn.BatchNorm2d(outputs)))

        stem, stages, last, head = _standard(width, block)
        ends = [nn.Sequential(*unit(3, stem, kernel=3, stride=2)), nn.Sequential(*unit(last, head))]
        first, final = ends if flat else (end[0] for end in ends)
        self.features = nn.Sequential(first, *(block for stage in stages for block in stage), final)
        classifier = nn.Linear(head, CLASSES)
        self.classifier = classifier if flat else nn.Sequential(nn.Dropout(), classifier)

    def features_of(self, x: Tensor) -> Tensor:
        return self.features(x)


class NormAct(nn.BatchNorm2d):
    """BN and ReLU6 in one module, as timm has them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x))


class Timm(Net):
    def __init__(self, width: float = 1.0):
        super().__init__()

        def block(inputs, outputs, expansion, stride):
            hidden = inputs * expansion
            depthwise = conv(hidden, hidden, 3, stride, groups=hidden)
            if expansion == 1:
                ends = {"conv_pw": conv(hidden, outputs), "bn2": nn.BatchNorm2d(outputs)}
                return Block(conv_dw=depthwise, bn1=NormAct(hidden), **ends)
            return Block(
                conv_pw=conv(inputs, hidden), bn1=NormAct(hidden), conv_dw=depthwise, bn2=NormAct(hidden),
                conv_pwl=conv(hidden, outputs), bn3=nn.BatchNorm2d(outputs),
            )  # fmt: skip

        stem, stages, last, head = _standard(width, block)
        self.conv_stem, self.bn1 = conv(3, stem, 3, 2), NormAct(stem)
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = conv(last, head), NormAct(head)
        self.classifier = nn.Linear(head, CLASSES)

    def features_of(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn1(self.conv_stem(x)))
        return self.bn2(self.conv_head(x))


# --- ResNet-50 ---


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, norm: Callable, shortcut: Callable):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), norm(width)
        self.conv3, self.bn3 = conv(width, 4 * width), norm(4 * width)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            self.downsample = shortcut(conv(inputs, 4 * width, 1, stride), norm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(Net):
    def __init__(self, norm: Callable = nn.BatchNorm2d, shortcut: Callable = nn.Sequential):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, 2), norm(64)
        inputs = 64
        for stage, (blocks, stride) in enumerate([(3, 1), (4, 2), (6, 2), (3, 1)]):
            width, row = 64 * 2**stage, []
            for number in range(blocks):
                row.append(Bottleneck(inputs, width, stride if number == 0 else 1, norm, shortcut))
                inputs = 4 * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*row))
        self.fc = nn.Linear(inputs, CLASSES)

    def features_of(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class HeadlessResNet(ResNet):
    def __init__(self):
        super().__init__(Gated, lambda convolution, norm: Named(conv=convolution, bn=norm))
        del self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.features_of(x)


def released_resnet() -> Released:
    return Released(HeadlessResNet(), 2048)


def randomise(net, seed=0):
    """Kernels that keep the signal's size, norms and running moments far from their start, gates anywhere."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        leaf = name.rpartition(".")[2]
        if value.ndim in (2, 4) and leaf == "weight":
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.is_floating_point():
            low, high = {"gate": (0, 1), "running_mean": (-1, 1), "bias": (-0.5, 1)}.get(leaf, (0.5, 1.5))
            value.uniform_(low, high, generator=generator)
    neck = net.heads.classifier_norm if hasattr(net, "heads") else getattr(net, "bottleneck", None)
    if neck is not None:
        neck.bias.data.zero_()  # frozen there, absent here
    return net
