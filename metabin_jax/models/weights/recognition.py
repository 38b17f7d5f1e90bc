"""Which net a file of weights holds: architecture, width, norm layer and head, from its names and shapes alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metabin_jax.models.mobilenetv2 import IMAGENET_STAGES, STAGES, round_to_8
from metabin_jax.models.osnet import OSNETS, STEM
from metabin_jax.models.osnet import WIDTHS as OSNET_WIDTHS
from metabin_jax.models.weights import torch_files, torch_layouts
from metabin_jax.models.weights.torch_layouts import NEEDLESS, Layout
from metabin_jax.runtime.errors import UserError, few

WIDTHS = [number / 100 for number in range(10, 301, 5)]  # of MobileNetV2


class Net(NamedTuple):
    """What `models.create(name, num_classes, norm, neck=neck, **settings)` needs to make the net of a file.

    num_classes: 1 for a file without a classifier. neck: whether the file has a BNNeck.
    """

    name: str
    num_classes: int
    norm: str
    neck: bool
    settings: dict[str, Any]


def recognise(path_or_state_dict: str | Path | Mapping[str, Any]) -> tuple[Net, torch_files.Arrays]:
    """The net of a file that `load_torch` takes, and the file's arrays.

    Raises as `load_torch`, and UserError if the net is of a known project but of a size or variant that we do not have.
    """
    source, arrays = torch_files.arrays_of(path_or_state_dict)
    layout, theirs = torch_layouts.translated(arrays, source)
    shapes = {ours: arrays[name].shape for ours, name in theirs.items()}
    if foreign := _foreign(layout, shapes):
        raise UserError(
            f"{source} holds a variant of {layout.net} that is not supported, with {few(foreign, 3)}: choose another "
            "file"
        )
    name = _name(layout, shapes)
    if not name:
        raise UserError(f"{source} holds {layout.net} in a size that is not supported: choose another file")
    num_classes, *_ = shapes.get("classifier.weight", (1,))
    return Net(name, num_classes, _norm(shapes), "bnneck.weight" in shapes, _settings(layout, theirs)), arrays


def fitting(layout: Layout, theirs: Mapping[str, str], arrays: Mapping[str, Any]) -> str:
    """The end of an error's sentence: which model the file fits. Files of plain BN fit any norm layer."""
    shapes = {ours: arrays[own].shape for ours, own in theirs.items()}
    name = "" if _foreign(layout, shapes) else _name(layout, shapes)
    method = "" if _norm(shapes) == "bn" else f" --config.method={_norm(shapes)}"
    return f", or the model that it fits, --config.model.name={name}{method}" if name else " or another model"


def _foreign(layout: Layout, shapes: Mapping[str, Any]) -> list[str]:
    """The names that this layout does not have."""
    known = ("backbone/", "bnneck.", "classifier.", *layout.unused)
    return [name for name in shapes if not name.startswith(known) and not name.endswith(NEEDLESS)]


def _settings(layout: Layout, theirs: Mapping[str, str]) -> dict[str, Any]:
    """torchreid's MobileNetV2 and ResNets keep the last stride of ImageNet.

    Its ResNets are told apart by the classifier, which torchvision and timm call fc.
    """
    if layout.name == "torchreid" and layout.net == torch_layouts.MOBILENET:
        return {"stages": IMAGENET_STAGES}
    is_torchreids = layout.name == torch_layouts.PLAIN_RESNET and theirs.get("classifier.weight") == "classifier.weight"
    return {"last_stride": 2} if is_torchreids else {}


def _name(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The name of the model, or "" if none of ours has these shapes."""
    stem = shapes.get("backbone/stem.weight", (0,))[0]
    block = "backbone/stage2_block0"
    if layout.net == torch_layouts.OSNET:
        inside = f"{block}/expand_norm.weight" not in shapes
        kind = ("ain_" if inside else "ibn_") if f"{block}/instance_norm.weight" in shapes else ""
        widths = {int(STEM * width): text for text, width in OSNET_WIDTHS.items()}
        name = f"osnet_{kind}{widths.get(stem, '')}"
        return name if name in OSNETS else ""
    if layout.net == torch_layouts.RESNET:
        blocks = [
            sum(f"backbone/stage{stage}_block{number}/conv1.weight" in shapes for number in range(40))
            for stage in range(2, 6)
        ]
        # ResNeXt and wide ResNets have the same names.
        is_plain = shapes.get(f"{block}/conv2.weight") == (64, 64, 3, 3)
        return "resnet50" if blocks == [3, 4, 6, 3] and is_plain else ""
    standard = f"{block}/expand.weight" not in shapes
    places = [f"stage{stage}_block0/project" for stage in range(2, len(STAGES) + 2)]
    found = [shapes.get(f"backbone/{place}.weight", (0,))[0] for place in ("stem", *places, "head")]
    for width in WIDTHS:
        scaled = round_to_8 if standard else int
        inner = [scaled(channels * width) for channels in (32, *(stage.features for stage in STAGES))]
        if found == [*inner, scaled(1280 * max(1.0, width))]:
            return f"mobilenetv2_{'standard_' if standard else ''}{width}"
    return ""


def _norm(shapes: Mapping[str, Any]) -> str:
    """The norm layer, by the names of the stem's and, for those that differ with the depth, by others'."""
    stem = "backbone/stem_norm"
    if f"{stem}.gate" in shapes:
        return "metabin" if f"{stem}.ins_n.weight" in shapes else "bin"
    if f"{stem}.ins_n.weight" in shapes:
        return "half"
    if "backbone/stage2_block0/norm1.ins_n.weight" in shapes:
        return "ibn_a"
    if any(f"{place}.running_mean" in shapes for place in (stem, "backbone/stage2_transition_norm")):
        return "bn"
    return "dualnorm" if any(name.endswith(".running_mean") for name in shapes if "backbone/" in name) else "in"
