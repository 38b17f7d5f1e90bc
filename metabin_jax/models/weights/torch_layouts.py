"""Recognises the project that a PyTorch state dict comes from, and translates its names into ours.

A name becomes the path of our module with PyTorch's leaf: `backbone/stage2_block0/project_norm.running_var`.
The names are facts from KaiyangZhou/deep-person-reid, pytorch/vision, huggingface/pytorch-image-models,
tonylins/pytorch-mobilenet-v2, bismex/MetaBIN and Zplusdragon/CION_ReIDZoo.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metabin_jax.models.mobilenetv2 import STAGES
from metabin_jax.runtime.errors import UserError, few

# Leaves of a convolution, a classifier or a norm layer. The released MetaBIN's norm layers have the branches bat_n and
# ins_n, and gate is rho. The two halves of an IBN layer are IN and BN.
MOMENTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LEAVES = (
    *MOMENTS, "gate", "ins_n.weight", "ins_n.bias", *(f"bat_n.{leaf}" for leaf in MOMENTS),
    "IN.weight", "IN.bias", *(f"BN.{leaf}" for leaf in MOMENTS),
)  # fmt: skip


# Counters, and the moments by which released checkpoints normalise images, which we use too.
NEEDLESS = ("num_batches_tracked", "pixel_mean", "pixel_std")


class Layout(NamedTuple):
    """The names of one project and net.

    marker: a name that no later layout has. modules: those outside of the blocks. block: a pattern of a block's prefix
    that finds its stage and number, or its number in the net. inner: the modules of a block. first: the modules of the
    first block, if it has no expansion. stage_offset: our stage minus theirs. unused: how names start that only the
    project's training needs.
    """

    name: str
    net: str
    marker: str
    modules: dict[str, str]
    block: str
    inner: dict[str, str]
    first: dict[str, str] | None = None
    stage_offset: int = 0
    unused: tuple[str, ...] = ()


def _pairs(theirs: str, ours: Sequence[str]) -> dict[str, str]:
    return dict(zip(theirs.split(), ours, strict=True))


MOBILENET, RESNET, OSNET = "MobileNetV2", "ResNet-50", "OSNet"
PLAIN_RESNET = "torchvision, timm or torchreid"  # they have the same names

STEM = ("backbone/stem", "backbone/stem_norm")
ENDS = (*STEM, "backbone/head", "backbone/head_norm")
# In the order of the data flow.
DEPTHWISE = ("depthwise", "depthwise_norm", "project", "project_norm")
INVERTED_RESIDUAL = ("expand", "expand_norm", *DEPTHWISE)
BOTTLENECK = ("conv1", "norm1", "conv2", "norm2", "conv3", "norm3", "shortcut", "shortcut_norm")
TORCHVISION_BOTTLENECK = _pairs("conv1 bn1 conv2 bn2 conv3 bn3 downsample.0 downsample.1", BOTTLENECK)
OSNET_ENDS = (
    *("stem", "stem_norm", "stage2_transition", "stage2_transition_norm", "stage3_transition"),
    *("stage3_transition_norm", "head", "head_norm", "fc", "fc_norm"),
)
# Our streams have 1 to 4 light convolutions.
LIGHTS = {
    f"stream{stream}_light{light}/{own}": (stream, light, their)
    for stream in range(1, 5)
    for light in range(stream)
    for their, own in (("conv1", "pointwise"), ("conv2", "depthwise"), ("bn", "norm"))
}
OSNET_INNER = _pairs(
    "conv1.conv conv1.bn gate.fc1 gate.fc2 conv3.conv conv3.bn downsample.conv downsample.bn IN",
    ("reduce", "reduce_norm", "gate/fc1", "gate/fc2", "expand", "expand_norm", *BOTTLENECK[-2:], "instance_norm"),
)
RELEASED_HEAD = {"heads.classifier_norm": "bnneck", "heads.classifier_fc": "classifier"}


def _osnet_ends(*transitions: str) -> dict[str, str]:
    """What is outside of OSNet's blocks, where the transitions between its stages have these names."""
    convs = ["conv1", *transitions, "conv5"]
    theirs = [f"{name}.{part}" for name in convs for part in ("conv", "bn")]
    names = " ".join([*theirs, "fc.0", "fc.1", "classifier"])
    return _pairs(names, [*(f"backbone/{name}" for name in OSNET_ENDS), "classifier"])


LAYOUTS = (
    Layout(
        "CION",
        RESNET,
        "backbone.layer1.0.downsample.0.weight",
        _pairs("backbone.conv1 backbone.bn1", STEM),
        r"backbone\.layer(\d)\.(\d+)\.",
        TORCHVISION_BOTTLENECK,
        stage_offset=1,
        unused=("head.",),
    ),
    Layout(
        "CION, fine-tuned",
        RESNET,
        "base.layer1.0.downsample.0.weight",
        _pairs("base.conv1 base.bn1 bottleneck classifier", (*STEM, "bnneck", "classifier")),
        r"base\.layer(\d)\.(\d+)\.",
        TORCHVISION_BOTTLENECK,
        stage_offset=1,
    ),
    Layout(
        "the released MetaBIN",
        MOBILENET,
        "backbone.layer1.conv.weight",
        _pairs("backbone.layer1.conv backbone.layer1.bn backbone.layer9.conv backbone.layer9.bn", ENDS) | RELEASED_HEAD,
        r"backbone\.layer(\d)\.(\d+)\.",
        _pairs("conv1.conv conv1.bn dwconv2.conv dwconv2.bn conv3 bn", INVERTED_RESIDUAL),
    ),
    Layout(
        "the released MetaBIN",
        RESNET,
        "backbone.conv1.weight",
        _pairs("backbone.conv1 backbone.bn1", STEM) | RELEASED_HEAD,
        r"backbone\.layer(\d)\.(\d+)\.",
        _pairs("conv1 bn1 conv2 bn2 conv3 bn3 downsample.conv downsample.bn", BOTTLENECK),
        stage_offset=1,
    ),
    Layout(
        "torchreid",
        OSNET,
        "conv2.0.conv2a.conv1.weight",
        _osnet_ends("conv2.2.0", "conv3.2.0"),
        r"conv(\d)\.([01])\.",
        OSNET_INNER
        | {
            f"conv2{'abcd'[stream - 1]}.{'' if stream == 1 else f'{light}.'}{their}": ours
            for ours, (stream, light, their) in LIGHTS.items()
        },
    ),
    Layout(
        "torchreid (AIN)",
        OSNET,
        "conv2.0.conv2.0.layers.0.conv1.weight",
        _osnet_ends("pool2.0", "pool3.0"),
        r"conv(\d)\.([01])\.",
        OSNET_INNER
        | {f"conv2.{stream - 1}.layers.{light}.{their}": ours for ours, (stream, light, their) in LIGHTS.items()},
    ),
    Layout(
        "torchreid",
        MOBILENET,
        "conv1.conv.weight",
        _pairs("conv1.conv conv1.bn conv9.conv conv9.bn classifier", (*ENDS, "classifier")),
        r"conv(\d)\.(\d+)\.",
        _pairs("conv1.conv conv1.bn dwconv2.conv dwconv2.bn conv3.0 conv3.1", INVERTED_RESIDUAL),
    ),
    Layout(
        "timm",
        MOBILENET,
        "conv_stem.weight",
        _pairs("conv_stem bn1 conv_head bn2 classifier", (*ENDS, "classifier")),
        r"blocks\.(\d)\.(\d+)\.",
        _pairs("conv_pw bn1 conv_dw bn2 conv_pwl bn3", INVERTED_RESIDUAL),
        first=_pairs("conv_dw bn1 conv_pw bn2", DEPTHWISE),
        stage_offset=2,
    ),
    Layout(
        "torchvision",
        MOBILENET,
        "features.1.conv.0.0.weight",
        _pairs("features.0.0 features.0.1 features.18.0 features.18.1 classifier.1", (*ENDS, "classifier")),
        r"features\.(\d+)\.conv\.",
        _pairs("0.0 0.1 1.0 1.1 2 3", INVERTED_RESIDUAL),
        first=_pairs("0.0 0.1 1 2", DEPTHWISE),
    ),
    Layout(
        "tonylins",
        MOBILENET,
        "features.1.conv.0.weight",
        _pairs("features.0.0 features.0.1 features.18.0 features.18.1 classifier", (*ENDS, "classifier"))
        | _pairs("conv.0 conv.1", ENDS[2:]),
        r"features\.(\d+)\.conv\.",
        _pairs("0 1 3 4 6 7", INVERTED_RESIDUAL),
        first=_pairs("0 1 3 4", DEPTHWISE),
    ),
    Layout(
        PLAIN_RESNET,
        RESNET,
        "layer1.0.conv3.weight",
        _pairs("conv1 bn1 fc classifier", (*STEM, "classifier", "classifier")),
        r"layer(\d)\.(\d+)\.",
        TORCHVISION_BOTTLENECK,
        stage_offset=1,
    ),
)

# Our (stage, block) of each block of a MobileNetV2, by its number in the whole net (from 1). Stage 1 is the stem.
BLOCKS = [(stage, block) for stage, row in enumerate(STAGES, start=2) for block in range(row.blocks)]
PLACES = dict(enumerate(BLOCKS, start=1))


def detect(names: Iterable[str], source: str) -> Layout:
    """The layout with these names. Raises UserError, which names `source`, if there is none."""
    names = list(names)
    for layout in LAYOUTS:
        if layout.marker in names:
            return layout
    known = "; ".join(f"{layout.net} of {layout.name}" for layout in LAYOUTS)
    raise UserError(f"{source} has the names of no known project ({few(names, 3)}); known are {known}")


def translate(layout: Layout, name: str) -> str:
    """Our name for a name of the layout: `module/path.leaf`. Names that the layout does not know stay unchanged."""
    prefix, modules, rest = "", layout.modules, name
    if match := re.match(layout.block, name):
        first, *second = map(int, match.groups())
        stage, block = (first + layout.stage_offset, second[0]) if second else PLACES.get(first, (0, first))
        is_first = (stage, block) == PLACES[1]
        modules = layout.first if layout.first and is_first else layout.inner
        prefix, rest = f"backbone/stage{stage}_block{block}/", name[match.end() :]
    for theirs, ours in modules.items():
        leaf = rest.removeprefix(f"{theirs}.")
        if leaf != rest and leaf in LEAVES:
            return f"{prefix}{ours}.{leaf.replace('IN.', 'ins_n.').replace('BN.', 'bat_n.')}"
    return name


def translated(arrays: Mapping[str, Any], source: str) -> tuple[Layout, dict[str, str]]:
    """The layout of these names, and our name of each -> the name. Raises UserError, which names `source`."""
    layout, theirs = detect(arrays, source), dict[str, str]()
    for name in arrays:
        ours = translate(layout, name)
        if ours in theirs:
            raise UserError(f"{source} has {theirs[ours]} and {name} for one array of ours: leave one out")
        theirs[ours] = name
    return layout, theirs
