"""Loads state dicts of the usual PyTorch projects into the variables of our models."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from metabin_jax.models.weights import torch_files, torch_layouts
from metabin_jax.models.weights.recognition import fitting
from metabin_jax.models.weights.torch_files import Arrays
from metabin_jax.models.weights.torch_layouts import NEEDLESS, Layout
from metabin_jax.runtime.errors import UserError, few

EPSILON = 1e-5  # of every norm layer, ours and theirs

# Our leaf -> (branch in a norm layer of the released MetaBIN, PyTorch's leaf).
LEAVES = {
    "kernel": ("", "weight"),
    "scale": ("", "weight"),
    "bias": ("", "bias"),
    "bn_scale": ("bat_n.", "weight"),
    "bn_bias": ("bat_n.", "bias"),
    "in_scale": ("ins_n.", "weight"),
    "in_bias": ("ins_n.", "bias"),
    "mean": ("bat_n.", "running_mean"),
    "var": ("bat_n.", "running_var"),
    "rho": ("", "gate"),
}
BRANCHES = {"bn": "bat_n.", "in": "ins_n."}  # of norm.HalfNorm
# Files of plain BN do not have these: the instance branch stays at 1 and 0, as in the released code, and rho at 1.
BALANCE = ("in_scale", "in_bias", "rho")


@dataclasses.dataclass(frozen=True)
class Report:
    """What `load_torch` did. Our arrays are named by their path (`params/backbone/stem/kernel`), others as in the file.

    layout: the project whose names the file has. loaded: ours that have the file's values. identity: ours that make an
    identity of an expansion that the file's net does not have. kept: ours that did not change. ignored: those of the
    file that were not used.
    """

    layout: str
    loaded: tuple[str, ...]
    identity: tuple[str, ...]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        ignored = [name for name in self.ignored if not name.endswith(NEEDLESS)]
        rest = {"made an identity": self.identity, "kept fresh": self.kept, "of the file ignored": ignored}
        return ", ".join([f"{len(self.loaded)} arrays loaded from a {self.layout}", *_counted(rest, 3)])


def load_torch(
    path_or_state_dict: str | Path | Mapping[str, Any],
    variables: Mapping[str, Any],
    *,
    may_differ: Sequence[str] = ("classifier",),
) -> tuple[dict[str, Any], Report]:
    """Loads the weights of a PyTorch project into the variables of one of our models (`models.create`).

    Supports the layouts of `torch_layouts`: MobileNetV2 of torchreid (the paper's variant), MobileNetV2 of torchvision,
    timm and tonylins (the standard one; at width 1.0 also into the paper's variant, see `_identity_expansion`),
    ResNet-50 of torchvision, timm, torchreid and CION, also with IBN-a, OSNet, OSNet-IBN and OSNet-AIN of torchreid,
    and checkpoints of the released MetaBIN of both nets.

    Plain BN goes into the BN branch of BIN layers; the instance branch stays at 1 and 0, and rho at 1. IN layers take
    the scale and bias of BN. A BNNeck that the project does not have keeps its initial values.

    Args:
      path_or_state_dict: a file that `torch_files.read` takes, or a mapping of names to arrays.
      variables: params, batch_stats and, if the model has it, rho: arrays, or only their shapes for a check.
      may_differ: arrays that may be missing or differ in shape, on either side, and are then left out. Each entry
        stands for a name and all names below it: ours without the collection (`backbone/head`), or the file's.

    Returns the variables with the file's values as NumPy arrays, and the report. Raises FileNotFoundError, and
    UserError if the file cannot be read, is of no known project, or does not match (names both sides).
    """
    source, arrays = torch_files.arrays_of(path_or_state_dict)
    layout, theirs = torch_layouts.translated(arrays, source)
    ours = flatten_dict(dict(variables), sep="/")
    if _net_of(ours) != layout.net:
        raise UserError(
            f"{source} holds {layout.net}, but the model is another net: choose another file"
            f"{fitting(layout, theirs, arrays)}"
        )
    values = {translated: arrays[name] for translated, name in theirs.items()}
    identity = _identity_expansion(layout, ours, values)
    values |= identity

    result, used, missing, differing = dict(ours), dict[str, str](), [], dict[str, str]()
    for target, leaf in ours.items():
        name, value = _find(target, values)
        if value is not None and value.shape == leaf.shape:
            if fault := _fault(target, value):
                raise UserError(f"{source} holds values in {theirs.get(name, name)} that are {fault}")
            result[target], used[target] = np.array(value, leaf.dtype), name
        elif any(_below(known_as, may_differ) for known_as in (target.partition("/")[2], name, theirs.get(name, ""))):
            continue
        elif value is not None:
            differing[name] = f"{target} is {list(leaf.shape)}, {theirs.get(name, name)} {list(value.shape)}"
        elif not _may_stay(target, layout, values):
            missing.append(f"{target} {list(leaf.shape)}")
    left = {name: theirs[name] for name in theirs if name not in {*used.values(), *differing}}
    unknown = [
        f"{name} {list(arrays[name].shape)}"
        for translated, name in left.items()
        if not (
            _below(name, may_differ)
            or _below(translated, may_differ)
            or name.startswith(layout.unused)
            or _needless(translated, values, ours)
        )
    ]
    project = f"{layout.net} of {layout.name}"
    wrong = {
        "of the model's names are missing in the file": missing,
        "of the file's names are unknown to the model": unknown,
        "shapes differ": list(differing.values()),
    }
    if any(wrong.values()):
        what = "; ".join(_counted(wrong, 10))
        raise UserError(
            f"{source} ({project}) does not fit the model: {what}: choose another file{fitting(layout, theirs, arrays)}"
        )
    return unflatten_dict(result, sep="/"), Report(
        layout=project,
        loaded=tuple(target for target in used if used[target] not in identity),
        identity=tuple(target for target in used if used[target] in identity),
        kept=tuple(target for target in ours if target not in used),
        ignored=tuple(left.values()),
    )


def _net_of(names: Iterable[str]) -> str:
    """Which of the nets has these names of ours."""
    if any("/gate/" in name for name in names):
        return torch_layouts.OSNET
    return torch_layouts.MOBILENET if any("/depthwise/" in name for name in names) else torch_layouts.RESNET


def _fault(target: str, value: np.ndarray) -> str:
    """What is wrong with these values for a leaf of ours, or ""."""
    if not jnp.issubdtype(value.dtype, jnp.floating):  # quantised weights need their scales
        return f"{value.dtype}, not floating-point numbers"
    if not (np.abs(value) <= np.finfo(np.float32).max).all():
        return "not finite"
    return "negative variances" if target.endswith("/var") and (value < 0).any() else ""


def _counted(groups: Mapping[str, Sequence[str]], most: int) -> list[str]:
    """ "3 shapes differ (a, b, ...)" for every group that has names."""
    return [f"{len(names)} {what} ({few(names, most)})" for what, names in groups.items() if names]


def _identity_expansion(layout: Layout, ours: Mapping[str, Any], values: Arrays) -> Arrays:
    """Values for the expansion of the first block with which the paper's variant computes what the standard net does.

    The kernel is an identity. With running statistics, the norm is an identity if its scale is sqrt(var + eps) and its
    bias is the mean. To be nearly an identity with the statistics of a batch too, mean and var must be those of its
    input, the output of the stem: we take the stem's output before its ReLU6 as normal, with mean and deviation from
    the bias and scale of the stem's norm. The ReLU6 after the expansion then changes nothing.
    """
    expand = "backbone/stage2_block0/expand"
    scale, bias = (values.get(f"backbone/stem_norm.{leaf}") for leaf in ("weight", "bias"))
    kernel = ours.get(f"params/{expand}/kernel")
    if kernel is None or layout.first is None or scale is None or bias is None:
        return {}
    channels = kernel.shape[2]
    if not scale.shape == bias.shape == (channels,):
        return {}
    quantiles = np.array([NormalDist().inv_cdf((number + 0.5) / 1000) for number in range(1000)])[:, None]
    output = np.clip(bias[None] + scale[None] * quantiles, 0, 6)
    mean, var = output.mean(0), output.var(0)
    return {
        f"{expand}.weight": np.eye(channels)[:, :, None, None],
        f"{expand}_norm.weight": np.sqrt(var + EPSILON),
        f"{expand}_norm.bias": mean,
        f"{expand}_norm.running_mean": mean,
        f"{expand}_norm.running_var": var,
    }


def _find(target: str, values: Arrays) -> tuple[str, np.ndarray | None]:
    """The name that fills a leaf of ours, and its value in our order of axes (None if the file has none)."""
    _, *path, leaf = target.split("/")
    branch, name = LEAVES[leaf]
    half = path[-1] if path[-1] in BRANCHES else ""
    if half:
        branch, path = BRANCHES[half], path[:-1]
    module = "/".join(path)
    whole, own = f"{module}.{name}", f"{module}.{branch}{name}"
    if own in values or (branch == "ins_n." and not half):
        return own, _in_our_axes(values.get(own))
    value = _in_our_axes(values.get(whole))
    if half and value is not None:
        middle = len(value) // 2
        value = value[:middle] if half == "bn" else value[middle:]
    return whole, value


def _in_our_axes(value: np.ndarray | None) -> np.ndarray | None:
    """Transposes kernels [out, in, kh, kw] to [kh, kw, in, out] and matrices [out, in] to [in, out]."""
    if value is None or value.ndim not in (2, 4):
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def _may_stay(target: str, layout: Layout, values: Arrays) -> bool:
    """Whether a file of this layout may lack this leaf of ours."""
    if target.split("/")[1] == "bnneck":
        return "bnneck" not in layout.modules.values()
    return target.endswith(BALANCE) and not any(name.endswith(".gate") for name in values)


def _needless(name: str, values: Arrays, ours: Mapping[str, Any]) -> bool:
    """Whether our model does not need this value of the file."""
    module, _, leaf = name.rpartition(".")
    if leaf in ("running_mean", "running_var"):  # our layer is IN, which has no running moments
        return f"params/{module}/scale" in ours and f"batch_stats/{module}/mean" not in ours
    if name == "bnneck.bias":  # frozen at 0; ours has no bias
        return values[name].shape == ours["params/bnneck/scale"].shape and not values[name].any()
    return leaf in NEEDLESS


def _below(name: str, names: Sequence[str]) -> bool:
    return any(name == top or name.startswith((f"{top}/", f"{top}.")) for top in names)
