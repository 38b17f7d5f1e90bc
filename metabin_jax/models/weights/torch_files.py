"""Reading state dicts: names and host arrays out of PyTorch and safetensors files. No code in a file is ever run."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # imported, it also makes numpy and so safetensors know bfloat16
import numpy as np

from metabin_jax.runtime.errors import UserError

Arrays = dict[str, np.ndarray]

# Where checkpoints of whole trainings keep their state dict.
WRAPPERS = ("model", "state_dict")


def read(path: str | Path) -> Arrays:
    """The state dict of a file by its names, without the `module.` of DataParallel.

    `.safetensors` is read by the package safetensors, anything else by `torch.load(weights_only=True)`, which knows
    tensors and plain containers only; zip and older files. Raises FileNotFoundError, or ValueError for what is no such
    file or where the package is not installed.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"the weights file {path} does not exist")
    if not path.is_file():
        raise UserError(f"{path} is a folder: give the file of weights in it")
    if path.stat().st_size == 0:
        raise UserError(f"the weights file {path} is empty")
    return state_dict(_safetensors(path) if path.suffix == ".safetensors" else _torch(path), str(path))


def state_dict(content: Any, source: str) -> Arrays:
    """The state dict in `content`: a mapping of names to arrays, or a checkpoint with it under 'model' or 'state_dict'.

    `source` names it in the ValueError that anything else raises.
    """
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{source} holds no state dict, which maps names to tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise UserError(f"{source} holds {name!r}, a {type(value).__name__} where a state dict has tensors")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): np.asarray(value) for name, value in content.items()}


def _safetensors(path: Path) -> Arrays:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        raise UserError(f"{path}: install metabin_jax[safetensors] to read safetensors files") from None
    try:
        return load_file(path)
    except (SafetensorError, TypeError, AttributeError) as error:  # the last for a type that NumPy does not have
        raise UserError(f"{path} is no safetensors file or is damaged: {_first_line(error)}") from error


def _torch(path: Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: install metabin_jax[torch] to read PyTorch files, or save it as .safetensors elsewhere"
        ) from None

    def convert(value: Any) -> Any:
        """Tensors as arrays over the same memory: a few bytes can claim to be a tensor of any size."""
        if isinstance(value, dict):
            return {key: convert(inner) for key, inner in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype == torch.bfloat16:
            return value.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.detach().numpy()

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.file_size != member.compress_size for member in archive.infolist()):
                    raise ValueError("its content is compressed, which that of a state dict never is")
                damaged = archive.testzip()  # PyTorch does not look at the checksums
                if damaged:
                    raise ValueError(f"the checksum of {damaged} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats, addressed to whoever wrote the file
            return convert(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:  # its own words explain how to run the code
        raise UserError(
            f"{path} is damaged or holds more than tensors: it was refused, as reading it could run code in it (save "
            "the state dict alone, where you trust the file)"
        ) from error
    except Exception as error:  # whatever a damaged file makes of the reader
        raise UserError(
            f"{path} is damaged or holds more than tensors (save the state dict alone, where you trust the file): "
            f"{_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:150]}" if lines else type(error).__name__
