"""Nets for people beyond torch_projects: torchreid's OSNets, MobileNetV2 and ResNet-50, and CION's ResNet-50-IBN.

Written from the papers and from the names and shapes of the files; images are NCHW.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_projects import CLASSES, Named, Net, ResNet, Torchreid, conv, instance_norm


def unit(inputs: int, outputs: int, act: bool = True, norm=nn.BatchNorm2d, **kw: int) -> Named:
    modules = {"conv": conv(inputs, outputs, **kw), "bn": norm(outputs)}
    return Named(**modules, **({"relu": nn.ReLU()} if act else {}))


def light(channels: int) -> Named:
    depthwise = conv(channels, channels, 3, groups=channels)
    return Named(conv1=conv(channels, channels), conv2=depthwise, bn=nn.BatchNorm2d(channels), relu=nn.ReLU())


class Streams(Named):
    """AIN's way to name a row of light convolutions."""

    def __init__(self, channels: int, length: int):
        super().__init__(layers=nn.Sequential(*(light(channels) for _ in range(length))))


class Gate(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 16, 1), nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class OmniScale(nn.Module):
    """One block. ain: name the streams as a list; inside: IN in place of the last BN; behind: IN after the sum."""

    def __init__(self, inputs: int, outputs: int, ain: bool, inside: bool, behind: bool):
        super().__init__()
        middle = outputs // 4
        self.conv1 = unit(inputs, middle)
        if ain:
            self.conv2 = nn.ModuleList(Streams(middle, length) for length in (1, 2, 3, 4))
        else:
            self.conv2a = light(middle)
            for letter, length in zip("bcd", (2, 3, 4), strict=True):
                self.add_module(f"conv2{letter}", nn.Sequential(*(light(middle) for _ in range(length))))
        self.gate = Gate(middle)
        self.conv3 = Named(conv=conv(middle, outputs)) if inside else unit(middle, outputs, act=False)
        self.downsample = unit(inputs, outputs, act=False) if inputs != outputs else None
        self.IN, self.inside = instance_norm(outputs) if inside or behind else None, inside

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        streams = self.conv2 if hasattr(self, "conv2") else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        y = self.conv3(sum(self.gate(stream(y)) for stream in streams))
        y = self.IN(y) if self.inside else y
        y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(self.IN(y) if self.IN is not None and not self.inside else y)


class OSNet(Net):
    def __init__(self, width: float = 1.0, ain: bool = False, ibn: bool = False):
        super().__init__()
        inputs, *stages = (int(width * channels) for channels in (64, 256, 384, 512))
        self.conv1 = unit(3, inputs, norm=instance_norm if ain or ibn else nn.BatchNorm2d, kernel=7, stride=2)
        with_in = ((True, True), (False, True), (True, False)) if ain else ((False, False),) * 3
        for stage, (outputs, instances) in enumerate(zip(stages, with_in, strict=True), start=2):
            behind = ibn and stage == 2
            blocks = [
                OmniScale(inputs if number == 0 else outputs, outputs, ain, inside, behind)
                for number, inside in enumerate(instances)
            ]
            transition = nn.Sequential(unit(outputs, outputs), nn.AvgPool2d(2, 2))
            if ain:
                self.add_module(f"conv{stage}", nn.Sequential(*blocks))
                if stage < 4:
                    self.add_module(f"pool{stage}", transition)
            else:
                self.add_module(f"conv{stage}", nn.Sequential(*blocks, *([transition] if stage < 4 else [])))
            inputs = outputs
        self.conv5 = unit(inputs, inputs)
        self.fc = nn.Sequential(nn.Linear(inputs, 512), nn.BatchNorm1d(512), nn.ReLU())
        self.classifier = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 3, 2, 1)
        for name in ("conv2", "pool2", "conv3", "pool3", "conv4", "conv5"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return self.fc(x.mean((2, 3)))


class IBN(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2
        self.IN, self.BN = instance_norm(self.half), nn.BatchNorm2d(channels - self.half)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.IN(x[:, : self.half]), self.BN(x[:, self.half :])], 1)


def torchreid_resnet(ibn: bool = False) -> ResNet:
    """With the last stride of ImageNet, and torchreid's name of the classifier."""
    net = ResNet()
    net.classifier = net.fc
    del net.fc
    net.layer4[0].conv2.stride = net.layer4[0].downsample[0].stride = (2, 2)
    if ibn:
        for block in (*net.layer1, *net.layer2, *net.layer3):
            block.bn1 = IBN(block.bn1.num_features)
    return net


def torchreid_mobilenet(width: float = 1.0) -> Torchreid:
    """With the last stride of ImageNet."""
    net = Torchreid(width)
    net.conv7[0].dwconv2.conv.stride = (2, 2)
    return net


def ibn_backbone() -> ResNet:
    """With last stride 1 and no classifier."""
    net = torchreid_resnet(ibn=True)
    net.layer4[0].conv2.stride = net.layer4[0].downsample[0].stride = (1, 1)
    del net.classifier
    return net


class Cion(nn.Module):
    """As in pre-training, with a projection head that nobody needs afterwards."""

    def __init__(self):
        super().__init__()
        self.backbone = ibn_backbone()
        self.head = nn.Sequential(nn.Linear(2048, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


class FineTuned(nn.Module):
    """As in CION's fine-tuning: the embedding is behind a BNNeck."""

    def __init__(self):
        super().__init__()
        self.base = ibn_backbone()
        self.bottleneck, self.classifier = nn.BatchNorm1d(2048), nn.Linear(2048, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bottleneck(self.base(x))
