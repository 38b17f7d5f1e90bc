"""A trained net as it is deployed: pixels in, unit-length embeddings out, and its norm layers reduced.

In evaluation mode every norm layer is y = a * x + b * xI + t with constants a, b, t per channel, xI being x by each
image's own moments (`Norm.affine`). BN has no b; MetaBIN's is (1 - rho) * gI. If b is 0 in all channels, a goes into
the kernel of the convolution before the layer, and t becomes its bias. Otherwise the layer stays one scale and one
shift per image.

We tried to leave out the moments of single channels with b = 0. On a CPU that saves 2 % of the time if they are half of
all channels, and 15 % if they are 90 %. In the demo's net they are 0 to 19 % of a layer, so we do not do it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from metabin_jax.data.augment import normalise
from metabin_jax.models.convolution import Before, Conv, DepthwiseConv, by_library
from metabin_jax.norm import Affine, Norm

Path = tuple[str, ...]  # of a module in the net
CONVOLUTIONS = (Conv, DepthwiseConv)


def embedder(
    model: nn.Module, variables: dict, height: int, width: int, library: bool = False, normalised: bool = False
) -> Callable[[jax.Array], jax.Array]:
    """The net as one function: uint8 RGB [N, height, width, 3] -> float32 [N, D], each row of length 1.

    library: every convolution is the library's, one operation that converters know. Otherwise each is computed as in
    the net, which is faster. normalised: it takes float32 as `data.augment.normalise` returns it instead of uint8. The
    weights are constants of the function.
    """
    layers, convolution_before = _norm_layers(model, variables, height, width)
    params = flatten_dict(jax.tree.map(np.asarray, variables["params"]))
    for path, convolution in convolution_before.items():
        batch_C, instance_C, shift_C = layers[path]
        if instance_C is None:
            kernel = (*convolution, "kernel")
            params[kernel] = params[kernel] * batch_C
            ones_C: Any = np.ones_like(batch_C)
            layers[path] = Affine(ones_C, None, shift_C)
    reduced = {**variables, "params": unflatten_dict(params)}

    def evaluate(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module: Any = context.module
        if isinstance(module, Norm) and context.method_name in ("__call__", "coefficients"):
            coefficients = _coefficients(layers[module.path], module.epsilon, args[0])
            return _scaled(args[0], *coefficients) if context.method_name == "__call__" else coefficients
        if library and isinstance(module, CONVOLUTIONS):
            return by_library(_prepared(*args), params[(*module.path, "kernel")], module.stride)
        return next_fun(*args, **kwargs)

    def embed(image_NHWC: jax.Array) -> jax.Array:
        with nn.intercept_methods(evaluate):
            x_NHWC = image_NHWC if normalised else normalise(image_NHWC)
            outputs: Any = model.apply(reduced, x_NHWC, train=False)
        _, embedding_ND, _ = outputs
        length_N1 = jnp.sqrt(jnp.square(embedding_ND).sum(1, keepdims=True))
        return embedding_ND / length_N1

    return embed


def _coefficients(layer: Affine, epsilon: float, x_NHWC: jax.Array) -> tuple[Any, Any]:
    """The layer as scale and shift: [N, C], or constants [1, C] if it needs no moments."""
    batch_1C, shift_1C = layer.batch_C[None], layer.shift_C[None]
    if layer.instance_C is None:
        return batch_1C, shift_1C
    mean_NC = x_NHWC.mean((1, 2))
    var_NC = jnp.square(x_NHWC - mean_NC[:, None, None, :]).mean((1, 2))
    scale_NC = layer.instance_C[None] * jax.lax.rsqrt(var_NC + epsilon)
    return batch_1C + scale_NC, shift_1C - scale_NC * mean_NC


def _scaled(x_NHWC: jax.Array, scale_NC: Any, shift_NC: Any) -> jax.Array:
    """x * scale + shift, without the product if the scale went into the convolution."""
    if not (isinstance(scale_NC, np.ndarray) and (scale_NC == 1).all()):
        x_NHWC = x_NHWC * scale_NC[:, None, None, :]
    return x_NHWC + shift_NC[:, None, None, :]


def _prepared(x_NHWC: jax.Array, before: Before | None = None) -> jax.Array:
    return x_NHWC if before is None else before.act(_scaled(x_NHWC, before.scale_NC, before.shift_NC))


def _norm_layers(
    model: nn.Module, variables: dict, height: int, width: int
) -> tuple[dict[Path, Affine], dict[Path, Path]]:
    """Every norm layer by its path, and the path of the convolution whose output it takes, if it takes one's.

    An instance_C of zeros is None. In these nets nothing else takes that output, so the convolution may be changed.
    """
    convolution_before: dict[Path, Path] = {}

    def collect(variables: dict, image_NHWC: jax.Array) -> dict[Path, Affine]:
        outputs: dict[int, tuple[Path, jax.Array]] = {}  # keeps the arrays alive, so that their ids stay unique
        found: dict[Path, Affine] = {}

        def watch(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            module, method = context.module, context.method_name
            out = next_fun(*args, **kwargs)
            if isinstance(module, CONVOLUTIONS) and method == "__call__":
                outputs[id(out)] = (module.path, out)
            if isinstance(module, Norm) and method == "coefficients":
                found[module.path] = module.affine(args[0].shape[-1])
                if id(args[0]) in outputs:
                    convolution_before[module.path] = outputs[id(args[0])][0]
            return out

        with nn.intercept_methods(watch):
            model.apply(variables, image_NHWC, train=False)
        return found

    # Compiled, so that XLA leaves out everything but these few values.
    found = jax.device_get(jax.jit(collect)(variables, jnp.zeros((1, height, width, 3))))
    layers = {
        path: layer if np.any(layer.instance_C) else layer._replace(instance_C=None) for path, layer in found.items()
    }
    return layers, convolution_before
