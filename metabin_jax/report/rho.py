"""How rho is distributed over the channels of each layer, for the report and the figures."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from numpy.typing import NDArray

RHO_BINS = 10  # strictly between 0 and 1


class Layer(NamedTuple):
    """rho of one layer.

    name: such as `stage2.0 expand`. counts: number of channels at 0, in each of RHO_BINS equal bins, and at 1.
    """

    name: str
    counts: NDArray[np.int64]
    mean: float


def rho_layers(model: nn.Module, variables: dict, size: tuple[int, int]) -> list[Layer]:
    """The distribution of rho in each layer. Layers are in the order in which the net calls them."""
    return [layer_of(path, rho_C) for path, rho_C in in_order(model, variables, size).items()]


def overall(layers: Sequence[Layer]) -> Layer:
    """All channels of one or more layers as one layer."""
    counts = np.array([layer.counts for layer in layers])
    mean = np.average([layer.mean for layer in layers], weights=counts.sum(1))
    return Layer("all layers", counts.sum(0), float(mean))


def in_order(model: nn.Module, variables: dict, size: tuple[int, int]) -> dict[tuple[str, ...], NDArray]:
    """Path of each layer -> its rho [C], in the order in which the net calls the layers."""
    called: dict[tuple[str, ...], None] = {}

    def note(method: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        called[context.module.path] = None
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda image: model.apply(variables, image, train=False), np.zeros((1, *size, 3), np.float32))
    values_of = {path[:-1]: np.asarray(rho_C) for path, rho_C in flatten_dict(variables["rho"]).items()}
    return {path: values_of[path] for path in called if path in values_of}


def layer_of(path: tuple[str, ...], rho_C: NDArray) -> Layer:
    """Counts 0 and 1 apart from the bins, because clipping puts channels at exactly 0 or 1."""
    inside = rho_C[(rho_C > 0) & (rho_C < 1)]
    bins = np.bincount(np.minimum((inside * RHO_BINS).astype(int), RHO_BINS - 1), minlength=RHO_BINS)
    counts = np.array([(rho_C <= 0).sum(), *bins, (rho_C >= 1).sum()])
    return Layer(layer_name(path), counts, float(rho_C.mean()))


def layer_name(path: tuple[str, ...]) -> str:
    """Such as `stage2.0 expand`."""
    return " ".join(part.removesuffix("_norm").replace("_block", ".") for part in path if part != "backbone")
