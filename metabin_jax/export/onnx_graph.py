"""An ONNX model from the jaxpr of a net: each equation becomes one or two nodes.

Arrays of rank 4 are NHWC in JAX and NCHW in ONNX; one transpose, at the input, converts them. broadcast_in_dim only
adds axes, and ONNX's own broadcasting does the rest.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.export import symbolic_shape
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import TensorProto, helper, numpy_helper

NCHW = (0, 3, 1, 2)  # the JAX axis that each ONNX axis is
# Opset 18 has every operation we need, and IR version 8 belongs to it. Newer versions would exclude older runtimes.
OPSET, IR_VERSION = 18, 8

Value = np.ndarray | str  # a constant in JAX's layout, or the name of an array in ONNX's


def onnx_model(
    embed: Callable[[jax.Array], jax.Array], height: int, width: int, nchw_float: bool = False
) -> onnx.ModelProto:
    """`embed` (uint8 [N, height, width, 3] -> float32 [N, D]) with the input `image` and the output `embedding`.

    nchw_float: `embed` takes float32, and the file's input is float32 [N, 3, height, width].
    Raises NotImplementedError for a JAX primitive that has no rule here.
    """
    (batch,) = symbolic_shape("batch")
    dtype = jnp.float32 if nchw_float else jnp.uint8
    closed = jax.make_jaxpr(embed)(jax.ShapeDtypeStruct((batch, height, width, 3), dtype))
    output: Any = closed.jaxpr.outvars[0].aval
    graph = _Graph()
    image = "image" if nchw_float else graph.node("Transpose", "image", perm=NCHW)
    (embedding,) = graph.run(closed.jaxpr, closed.consts, [image])
    graph.nodes.append(helper.make_node("Identity", [graph.name(embedding)], ["embedding"]))
    shape: list[Any] = ["batch", 3, height, width] if nchw_float else ["batch", height, width, 3]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("image", element, shape)]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", output.shape[1]])]
    whole = helper.make_graph(graph.nodes, "metabin_jax", inputs, outputs, graph.constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(whole, opset_imports=[opset], ir_version=IR_VERSION, producer_name="metabin_jax")


class _Graph:
    """The nodes and constants added so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: Value, **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        output = f"{op}_{len(self.nodes)}"
        names = [self.name(value) for value in inputs]
        self.nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def name(self, value: Value) -> str:
        """The name of a value; a constant is added first."""
        if isinstance(value, str):
            return value
        return self.constant(value.transpose(NCHW) if value.ndim == 4 else value)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Adds a constant that is in ONNX's layout already, and returns its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def run(self, jaxpr: Jaxpr, consts: list, inputs: list[Value]) -> list[Value]:
        """Adds the equations of `jaxpr` and returns its outputs."""
        values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        values |= zip(jaxpr.invars, inputs, strict=True)

        def read(atom: Any) -> Value:
            if not isinstance(atom, Literal):
                return values[atom]
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype)

        for equation in _needed(jaxpr):
            arguments = [read(atom) for atom in equation.invars]
            values |= zip(equation.outvars, self.equation(equation, arguments), strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, inputs: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in INNER:
            inner: ClosedJaxpr = params[INNER[name]]
            return self.run(inner.jaxpr, inner.consts, inputs)
        if not any(isinstance(value, str) for value in inputs):
            return [np.asarray(equation.primitive.bind(*inputs, **params))]  # constants only: computed now
        if name in SAME:
            return [self.node(SAME[name], *inputs)]
        if name not in RULES:
            raise NotImplementedError(f"the JAX primitive {name} has no ONNX rule: add it to {__name__}.RULES")
        return [RULES[name](self, equation, *inputs)]


def _needed(jaxpr: Jaxpr) -> list[Any]:
    """The equations that the outputs depend on: an embedding needs no classifier."""
    needed, found = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(map(id, equation.outvars)):
            needed.update(map(id, equation.invars))
            found.append(equation)
    return found[::-1]


def _max(graph: _Graph, equation: Any, x: Value, least: Value) -> Value:
    """Relu if `least` is 0: runtimes fuse it with the convolution before it."""
    return graph.node("Relu", x) if isinstance(least, np.ndarray) and not least.any() else graph.node("Max", x, least)


def _min(graph: _Graph, equation: Any, x: Value, most: Value) -> Value:
    """Clip, as in ReLU6, if `most` is one number."""
    scalar = isinstance(most, np.ndarray) and most.ndim == 0
    return graph.node("Clip", x, "", most) if scalar else graph.node("Min", x, most)


def _cast(graph: _Graph, equation: Any, x: str) -> Value:
    return graph.node("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"])))


def _broadcast(graph: _Graph, equation: Any, x: str) -> Value:
    """Adds the new axes, with size 1."""
    kept, rank = equation.params["broadcast_dimensions"], len(equation.params["shape"])
    if len(kept) == rank:
        return x
    order = _order(rank)
    return graph.node("Unsqueeze", x, graph.constant([i for i in range(rank) if order[i] not in kept], np.int64))


def _over_axes(graph: _Graph, equation: Any, x: str, op: str, axes: str, **attributes: int) -> Value:
    """A node that takes axes as a second input. axes: their name in JAX."""
    order = _order(equation.invars[0].aval.ndim)
    own = graph.constant([order.index(axis) for axis in equation.params[axes]], np.int64)
    return graph.node(op, x, own, **attributes)


def _convolution(graph: _Graph, equation: Any, x: str, kernel_HWIO: np.ndarray) -> Value:
    params = equation.params
    low, high = zip(*params["padding"], strict=True)
    window = {"kernel_shape": kernel_HWIO.shape[:2], "strides": params["window_strides"], "pads": (*low, *high)}
    kernel = graph.constant(kernel_HWIO.transpose(3, 2, 0, 1))
    return graph.node("Conv", x, kernel, group=params["feature_group_count"], **window)


def _product(graph: _Graph, equation: Any, x: str, matrix: np.ndarray) -> Value:
    if equation.params["dimension_numbers"] != (((1,), (0,)), ((), ())) or matrix.ndim != 2:
        raise NotImplementedError(f"only products of a matrix with a constant one have an ONNX rule, not {equation}")
    return graph.node("MatMul", x, matrix)


def _pool(graph: _Graph, equation: Any, x: str, op: str, **attributes: int) -> str:
    params = equation.params
    low, high = zip(*params["padding"][1:3], strict=True)
    kernel_shape, strides = (params[name][1:3] for name in ("window_dimensions", "window_strides"))
    return graph.node(op, x, kernel_shape=kernel_shape, strides=strides, pads=(*low, *high), **attributes)


def _sum_pool(graph: _Graph, equation: Any, x: str) -> Value:
    count = np.asarray(math.prod(equation.params["window_dimensions"]), np.float32)
    return graph.node("Mul", _pool(graph, equation, x, "AveragePool", count_include_pad=1), count)


def _order(rank: int) -> tuple[int, ...]:
    return NCHW if rank == 4 else tuple(range(rank))


INNER = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}  # primitives that call a jaxpr, and which parameter it is
SAME = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "sqrt": "Sqrt",
    "logistic": "Sigmoid",
}  # one primitive, one operation
RULES: dict[str, Callable[..., Value]] = {
    "max": _max,
    "min": _min,
    "rsqrt": lambda graph, equation, x: graph.node("Reciprocal", graph.node("Sqrt", x)),
    "square": lambda graph, equation, x: graph.node("Mul", x, x),
    "convert_element_type": _cast,
    "broadcast_in_dim": _broadcast,
    "squeeze": partial(_over_axes, op="Squeeze", axes="dimensions"),
    "reduce_sum": partial(_over_axes, op="ReduceSum", axes="axes", keepdims=0),
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reduce_window_max": partial(_pool, op="MaxPool"),
    "reduce_window_sum": _sum_pool,
}
