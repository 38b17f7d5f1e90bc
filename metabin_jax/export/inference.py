"""A trained net as it is deployed: pixels in, unit-length embeddings out, and its norm layers reduced.

In evaluation mode every norm layer is y = a * x + b * xI + t with constants a, b, t per channel, xI being x by each
image's own moments: b = (1 - rho) * gI for MetaBIN, 0 for BN. Where b is 0 in all channels, a goes into the kernel of
the convolution before the layer, and t is its bias. Elsewhere the layer stays one scale and one shift per image.

To leave out the moments of single channels whose b is 0 was tried: on a CPU it takes 2 % less time where they are half
of all channels and 15 % where they are 90 %. In the demo's net they are 0 to 19 % of a layer, so it is not done.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from metabin_jax.data.augment import normalise
from metabin_jax.models.convolution import Before, Conv, DepthwiseConv, PointwiseConv, by_library
from metabin_jax.norm import BatchNorm, HalfNorm, _Norm

Path = tuple[str, ...]  # of a module in the net
CONVOLUTIONS = (Conv, PointwiseConv, DepthwiseConv)


class Affine(NamedTuple):
    """A norm layer in evaluation mode: y = batch * x + instance * xI + shift, each float32 [C]."""

    batch_C: np.ndarray
    instance_C: np.ndarray
    shift_C: np.ndarray


def embedder(
    model: nn.Module, variables: dict, height: int, width: int, library: bool = False
) -> Callable[[jax.Array], jax.Array]:
    """The net as one function: uint8 RGB [N, height, width, 3] -> float32 [N, D], each row of length 1.

    library: every convolution is the library's, one operation that converters know; otherwise they are as fast as in
    the net. The weights are constants of the function.
    """
    layers, convolution_before = _norm_layers(model, variables, height, width)
    params = flatten_dict(jax.tree.map(np.asarray, variables["params"]))
    for path, convolution in convolution_before.items():
        batch_C, instance_C, shift_C = layers[path]
        if not instance_C.any():
            kernel = (*convolution, "kernel")
            params[kernel] = params[kernel] * batch_C
            layers[path] = Affine(np.ones_like(batch_C), instance_C, shift_C)
    reduced = {**variables, "params": unflatten_dict(params)}

    def evaluate(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module: Any = context.module
        if isinstance(module, _Norm):
            coefficients = _coefficients(layers[module.path], module.epsilon, args[0])
            return _scaled(args[0], *coefficients) if context.method_name == "__call__" else coefficients
        if library and isinstance(module, CONVOLUTIONS):
            return by_library(_prepared(*args), params[(*module.path, "kernel")], module.stride)
        return next_fun(*args, **kwargs)

    def embed(image_NHWC: jax.Array) -> jax.Array:
        with nn.intercept_methods(evaluate):
            outputs: Any = model.apply(reduced, normalise(image_NHWC), train=False)
        _, embedding_ND, _ = outputs
        length_N1 = jnp.sqrt(jnp.square(embedding_ND).sum(1, keepdims=True))
        return embedding_ND / length_N1

    return embed


def _coefficients(layer: Affine, epsilon: float, x_NHWC: jax.Array) -> tuple[Any, Any]:
    """The layer as scale and shift: [N, C] or, where no moments are needed, constants [1, C]."""
    batch_1C, instance_1C, shift_1C = (values_C[None] for values_C in layer)
    if not instance_1C.any():
        return batch_1C, shift_1C
    mean_NC = x_NHWC.mean((1, 2))
    var_NC = jnp.square(x_NHWC - mean_NC[:, None, None, :]).mean((1, 2))
    scale_NC = instance_1C * jax.lax.rsqrt(var_NC + epsilon)
    return batch_1C + scale_NC, shift_1C - scale_NC * mean_NC


def _scaled(x_NHWC: jax.Array, scale_NC: Any, shift_NC: Any) -> jax.Array:
    """x * scale + shift, without the product where the scale went into the convolution."""
    if not (isinstance(scale_NC, np.ndarray) and (scale_NC == 1).all()):
        x_NHWC = x_NHWC * scale_NC[:, None, None, :]
    return x_NHWC + shift_NC[:, None, None, :]


def _prepared(x_NHWC: jax.Array, before: Before | None = None) -> jax.Array:
    return x_NHWC if before is None else before.act(_scaled(x_NHWC, before.scale_NC, before.shift_NC))


def _norm_layers(
    model: nn.Module, variables: dict, height: int, width: int
) -> tuple[dict[Path, Affine], dict[Path, Path]]:
    """Every norm layer by its path, and the path of the convolution whose output it takes, if it takes one's.

    In these nets nothing else takes that output, so that the convolution may be changed for the layer.
    """
    convolution_before: dict[Path, Path] = {}

    def collect(variables: dict, image_NHWC: jax.Array) -> dict[Path, Any]:
        outputs: dict[int, tuple[Path, jax.Array]] = {}  # the arrays are kept so that their ids stay theirs
        found: dict[Path, Any] = {}

        def watch(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            module, method = context.module, context.method_name
            out = next_fun(*args, **kwargs)
            if isinstance(module, CONVOLUTIONS) and method == "__call__":
                outputs[id(out)] = (module.path, out)
            if isinstance(module, _Norm) and method == "mix":
                found[module.path] = args[1:]
            if isinstance(module, _Norm) and method == "coefficients":
                if isinstance(module, BatchNorm):
                    scale_1C, shift_1C = out
                    found[module.path] = scale_1C[0], jnp.zeros_like(scale_1C[0]), shift_1C[0]
                if isinstance(module, HalfNorm):
                    halves = (found[(*module.path, name)] for name in ("bn", "in"))
                    found[module.path] = tuple(jnp.concatenate(pair) for pair in zip(*halves, strict=True))
                if id(args[0]) in outputs:
                    convolution_before[module.path] = outputs[id(args[0])][0]
            return out

        with nn.intercept_methods(watch):
            model.apply(variables, image_NHWC, train=False)
        return found

    # Compiled, as everything but the few values asked for is then left out.
    found = jax.jit(collect)(variables, jnp.zeros((1, height, width, 3)))
    return {path: Affine(*map(np.asarray, layer)) for path, layer in found.items()}, convolution_before
