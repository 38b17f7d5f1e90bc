"""Reads state dicts, names and arrays, from PyTorch and safetensors files. Code in a file is never run."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # also registers bfloat16 with numpy, for safetensors
import numpy as np

from metabin_jax.models.weights import pickles
from metabin_jax.runtime.errors import UserError, first_line, needs

Arrays = dict[str, np.ndarray]


class StateDict(Arrays):
    """Names and arrays. source: what an error calls it."""

    source = "the state dict"


# Keys of the state dict in checkpoints of whole trainings.
WRAPPERS = ("model", "state_dict", "net", "teacher")
# Of the names in a state dict: of DataParallel, of torch.compile, and of nets that are a field of another one.
PREFIXES = ("module.", "_orig_mod.", "model.")


def read(path: str | Path) -> StateDict:
    """The state dict of a file, without PREFIXES.

    The package safetensors reads `.safetensors`. `torch.load(weights_only=True)` reads all other files. It accepts
    tensors and plain containers only, in zip files and in the older format.
    Raises FileNotFoundError, or UserError if it is another kind of file or if the package is not installed.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"the weights file {path} does not exist")
    if not path.is_file():
        raise UserError(f"{path} is a folder: give the file of weights in it")
    if path.stat().st_size == 0:
        raise UserError(f"the weights file {path} is empty")
    return state_dict(_safetensors(path) if path.suffix == ".safetensors" else _torch(path), str(path))


def arrays_of(path_or_state_dict: str | Path | Mapping[str, Any]) -> tuple[str, StateDict]:
    """What to call a file or a state dict in an error, and its arrays. Raises as `read` and `state_dict`."""
    if isinstance(path_or_state_dict, StateDict):
        return path_or_state_dict.source, path_or_state_dict
    if isinstance(path_or_state_dict, Mapping):
        return StateDict.source, state_dict(path_or_state_dict, StateDict.source)
    return str(path_or_state_dict), read(path_or_state_dict)


def state_dict(content: Any, source: str) -> StateDict:
    """The state dict in `content`: a mapping of names to arrays, or a checkpoint that has one under one of WRAPPERS.

    Raises UserError, which names `source`, for anything else.
    """
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{source} holds no state dict, which maps names to tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise UserError(f"{source} holds {name!r}, a {type(value).__name__} where a state dict has tensors")
    length = 0
    while prefix := next((p for p in PREFIXES if all(name.startswith(p, length) for name in content)), ""):
        length += len(prefix)
    arrays = StateDict({name[length:]: _array(value, f"{source} holds {name}") for name, value in content.items()})
    arrays.source = source
    return arrays


def _array(value: Any, what: str) -> np.ndarray:
    """The array in the memory of a tensor. A copy could be huge: a few bytes can claim any shape."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    try:
        tensor = value.detach()
        if str(tensor.dtype) == "torch.bfloat16":
            import torch

            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except Exception as error:  # of tensors that are sparse, quantised, on another device, ...
        raise UserError(f"{what}, which is no plain tensor: {first_line(error)}") from error


def _safetensors(path: Path) -> Arrays:
    needs(f"reading {path}", "safetensors", "safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, TypeError, AttributeError) as error:  # AttributeError: a type that NumPy does not have
        raise UserError(f"{path} is damaged or not a safetensors file: {first_line(error)}") from error


def _torch(path: Path) -> Any:
    needs(f"reading {path}", "torch", "torch", otherwise=", or save it elsewhere as .safetensors")
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.file_size != member.compress_size for member in archive.infolist()):
                    raise ValueError("its content is compressed, but PyTorch never compresses a state dict")
                damaged = archive.testzip()  # PyTorch does not check the checksums
                if damaged:
                    raise ValueError(f"the checksum of {damaged} is wrong")
                for name in archive.namelist():
                    if name.endswith(".pkl"):
                        pickles.check(io.BytesIO(archive.read(name)))
        else:
            with path.open("rb") as file:
                pickles.check_old_format(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the format, meant for the author of the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise anything
        has_code = isinstance(error, pickle.UnpicklingError)  # its text explains how to run the code: we do not show it
        reason = "it is refused, as reading it could run code in it" if has_code else first_line(error)
        raise UserError(
            f"{path} is damaged or holds more than tensors (if you trust the file, save its state dict alone): {reason}"
        ) from error
