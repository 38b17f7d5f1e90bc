"""The formats of an exported net: how to write its file and how to load it.

In every format the input `image` is uint8 RGB [N, H, W, 3] and the output `embedding` is float32 [N, D], for any N. In
the other layout of ONNX the input is float32 RGB [N, 3, H, W], divided by 255 and normalised by ImageNet's moments.
"""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from numpy.typing import NDArray

from metabin_jax.data.augment import normalise
from metabin_jax.export.inference import embedder

Images = NDArray[np.uint8]
Embed = Callable[[Images], NDArray[np.float32]]

PLATFORMS = ("cpu", "cuda", "tpu")  # on which a stablehlo file runs
CALIBRATION, CALIBRATION_BATCH = 128, 8  # images for the ranges of int8, and how many are in memory at a time
LITERT = ("ai_edge_litert", "litert_converter")
SIGNATURE = "serving_default"  # the name that TFLite's tools expect


class Format(NamedTuple):
    """write: (model, variables, image_NHWC) -> the file's content; the images set the input size and int8's ranges.

    load: path -> the net as a function of numpy arrays. tolerance: the largest difference from JAX that is allowed in a
    component of an embedding of length 1. needs: modules that it imports. They are in `extra`, or are installed as
    `otherwise` says. label: (content, facts) -> the content with facts about the net, for a format that has room.
    """

    write: Callable[[nn.Module, dict, Images], bytes]
    load: Callable[[Path], Embed]
    tolerance: float
    needs: tuple[str, ...] = ()
    extra: str = "export"
    otherwise: str = ""
    label: Callable[[bytes, dict[str, str]], bytes] | None = None


def write_stablehlo(model: nn.Module, variables: dict, image_NHWC: Images) -> bytes:
    """StableHLO for PLATFORMS, as `jax.export` serialises it."""
    return bytes(_exported(model, variables, image_NHWC, False, PLATFORMS).serialize())


def load_stablehlo(path: Path) -> Embed:
    embed = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda image_NHWC: np.asarray(embed(image_NHWC))


def write_onnx(model: nn.Module, variables: dict, image_NHWC: Images, nchw_float: bool = False) -> bytes:
    from metabin_jax.export.onnx_graph import onnx_model

    height, width = image_NHWC.shape[1:3]
    embed = embedder(model, variables, height, width, library=True, normalised=nchw_float)
    return onnx_model(embed, height, width, nchw_float).SerializeToString()


def label_onnx(content: bytes, facts: dict[str, str]) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, facts)
    return model.SerializeToString()


def load_onnx(path: Path) -> Embed:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["embedding"], {"image": image})[0]


def load_onnx_nchw_float(path: Path) -> Embed:
    embed = load_onnx(path)
    return lambda image_NHWC: embed(np.asarray(normalise(jnp.asarray(image_NHWC))).transpose(0, 3, 1, 2))


def write_tflite(model: nn.Module, variables: dict, image_NHWC: Images) -> bytes:
    """Uses Google's converter from StableHLO, which works without TensorFlow."""
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as converter

    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(_exported(model, variables, image_NHWC, True, ("cpu",)).mlir_module())
        converter.set_signature(module.operation, SIGNATURE, ["image"], ["embedding"])
        settings = converter.ConvertToTFLConfig()
        settings.unsafe_fuse_dynamic_shaped_broadcast = True  # safe: what is broadcast has one image or N
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), settings)
        return converter.export_flatbuffer_to_bytes(module.operation)


def write_tflite_int8(model: nn.Module, variables: dict, image_NHWC: Images) -> bytes:
    """Convolutions in int8, with ranges measured on images. Moments, scales and lengths stay float32.

    In int8 the smallest variances would become 0.
    """
    from litert_quantizer.qtyping import TFLOperationName
    from litert_quantizer.quantizer import Quantizer

    rows = np.linspace(0, len(image_NHWC) - 1, min(len(image_NHWC), CALIBRATION)).astype(int)
    batches = [image_NHWC[rows[start : start + CALIBRATION_BATCH]] for start in range(0, len(rows), CALIBRATION_BATCH)]
    # The library draws progress bars and warns about its own use of TFLite.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
        quantizer = Quantizer(write_tflite(model, variables, image_NHWC))
        for operation in (TFLOperationName.CONV_2D, TFLOperationName.DEPTHWISE_CONV_2D):
            quantizer.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
        # Over several batches the library averages the ranges, which clips the images outside of the average.
        ranges = [quantizer.calibrate({SIGNATURE: [{"image": batch}]}, num_threads=1) for batch in batches]
        return bytes(quantizer.quantize(_widest(ranges), enable_progress_report=False).quantized_model)


def _widest(ranges: list[dict[str, dict]]) -> dict[str, dict]:
    """The range of each array over all batches; {} for arrays that are not quantised."""
    widest = dict(ranges[0])
    for name, seen in widest.items():
        if seen:
            low, high = ([batch[name][end] for batch in ranges] for end in ("min", "max"))
            widest[name] = {**seen, "min": np.minimum.reduce(low), "max": np.maximum.reduce(high)}
    return widest


def load_tflite(path: Path) -> Embed:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (image,), (embedding,) = interpreter.get_input_details(), interpreter.get_output_details()

    def embed(image_NHWC: Images) -> NDArray[np.float32]:
        interpreter.resize_tensor_input(image["index"], image_NHWC.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(image["index"], image_NHWC)
        interpreter.invoke()
        return interpreter.get_tensor(embedding["index"])

    return embed


def _exported(
    model: nn.Module, variables: dict, image_NHWC: Images, library: bool, platforms: tuple[str, ...]
) -> export.Exported:
    height, width = image_NHWC.shape[1:3]
    embed = jax.jit(embedder(model, variables, height, width, library))
    shape = (*export.symbolic_shape("batch"), height, width, 3)
    return export.export(embed, platforms=platforms)(jax.ShapeDtypeStruct(shape, jnp.uint8))


# pip refuses to install the converter beside chex: its dependency xdsl, unused here, wants an older typing_extensions.
_CONVERTER = ", then pip install --no-deps litert-converter"

FORMATS = {
    "stablehlo": Format(write_stablehlo, load_stablehlo, 1e-4, ("flatbuffers",)),
    "onnx": Format(write_onnx, load_onnx, 1e-4, ("onnx", "onnxruntime"), label=label_onnx),
    "tflite": Format(write_tflite, load_tflite, 1e-4, LITERT, "tflite", _CONVERTER),
    "tflite-int8": Format(write_tflite_int8, load_tflite, 0.1, (*LITERT, "litert_quantizer"), "tflite", _CONVERTER),
}
LAYOUTS = {
    "nhwc-uint8": FORMATS,
    "nchw-float": {
        "onnx": FORMATS["onnx"]._replace(
            write=functools.partial(write_onnx, nchw_float=True), load=load_onnx_nchw_float
        )
    },
}
