"""Which net a file of weights holds: architecture, width, norm layer and head, from its names and shapes alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metabin_jax.models.mobilenetv2 import STAGES, round_to_8
from metabin_jax.models.osnet import STEM
from metabin_jax.models.weights import torch_files, torch_layouts
from metabin_jax.models.weights.torch_layouts import Layout
from metabin_jax.runtime.errors import UserError

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

    Raises as `load_torch`, and UserError if the net is of a known project but of a size that we do not have.
    """
    if isinstance(path_or_state_dict, Mapping):
        source, arrays = "the state dict", torch_files.state_dict(path_or_state_dict, "the state dict")
    else:
        source, arrays = str(path_or_state_dict), torch_files.read(path_or_state_dict)
    layout, theirs = torch_layouts.translated(arrays, source)
    shapes = {ours: arrays[name].shape for ours, name in theirs.items()}
    name = _name(layout, shapes)
    if not name:
        raise UserError(f"{source} holds a {layout.net} of a size that is not supported")
    neck = "bnneck.weight" in shapes
    # torchreid's ResNets keep the last stride of ImageNet. Torchvision's and timm's classifier is called fc.
    is_torchreids = layout.net == torch_layouts.RESNET and theirs.get("classifier.weight") == "classifier.weight"
    settings = {"last_stride": 2} if is_torchreids else {}
    num_classes, *_ = shapes.get("classifier.weight", (1,))
    return Net(name, num_classes, _norm(shapes), neck, settings), arrays


def fitting(layout: Layout, theirs: Mapping[str, str], arrays: Mapping[str, Any]) -> str:
    """The end of an error's sentence: which model the file fits."""
    name = _name(layout, {ours: arrays[own].shape for ours, own in theirs.items()})
    return f", or the model that it fits, --config.model.name={name}" if name else " or another model"


def _name(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The name of the model, or "" if none of ours has these shapes."""
    stem = shapes.get("backbone/stem.weight", (0,))[0]
    if layout.net == torch_layouts.OSNET:
        ain = "backbone/stage2_block0/instance_norm.weight" in shapes
        names = {48: "osnet_x0_75", 32: "osnet_x0_5", 16: "osnet_x0_25"} | {STEM: "osnet_x1_0"}
        return names.get(stem, "") if not ain else "osnet_ain_x1_0" * (stem == STEM)
    if layout.net == torch_layouts.RESNET:
        blocks = [
            sum(f"backbone/stage{stage}_block{block}/conv1.weight" in shapes for block in range(40))
            for stage in range(2, 6)
        ]
        return "resnet50" if blocks == [3, 4, 6, 3] else ""
    standard = "backbone/stage2_block0/expand.weight" not in shapes
    found = [shapes.get(f"backbone/stage{stage}_block0/project.weight", (0,))[0] for stage in range(2, len(STAGES) + 2)]
    for width in WIDTHS:
        scaled = round_to_8 if standard else int
        if [stem, *found] == [scaled(32 * width), *(scaled(stage.features * width) for stage in STAGES)]:
            return f"mobilenetv2_{'standard_' if standard else ''}{width}"
    return ""


def _norm(shapes: Mapping[str, Any]) -> str:
    if any(name.endswith(".gate") for name in shapes):
        return "metabin"
    return "ibn_a" if "backbone/stage2_block0/norm1.ins_n.weight" in shapes else "bn"
