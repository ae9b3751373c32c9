"""PyTorch files of unknown origin, read without running anything in them.

PyTorch is imported where it is needed, so that the other formats do without it.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.activations.arrays import as_float32
from sae_jax.formats import files


def read(path: Path) -> dict[str, Any]:
    """Reads the dict in a PyTorch file, by the unpickler that builds nothing but data.

    Raises:
      ValueError: if the file is missing, damaged, or holds anything but tensors and
        plain values in a dict with string keys.
    """
    import torch

    files.existing(path)
    try:
        if zipfile.is_zipfile(path):
            # PyTorch does not compare the checksums that it writes.
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} does not have its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # Its text advises to run the file's code.
        raise ValueError(
            f"{path} is damaged or holds more than tensors and plain values, such as a whole"
            " module, which is never built here; save the module's state_dict() instead"
        ) from error
    except Exception as error:  # A damaged file can fail in any way; none of them is ours.
        raise ValueError(f"{path} is not readable as a file of tensors: {error!r}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of names")
    return content


def to_arrays(tensors: Mapping[str, Any], path: Path) -> files.Arrays:
    """Converts PyTorch tensors to float32 arrays.

    Raises:
      ValueError: if an entry is not an ordinary tensor of floats.
    """
    import torch

    arrays = {}
    for name, tensor in tensors.items():
        what = f"{name} in {path}"
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{what} is a {type(tensor).__name__}; expected a tensor")
        if not _is_dense(tensor):
            raise ValueError(f"{what} is not a dense tensor of numbers in memory")
        # Strides of zero make a few bytes look like any amount of memory.
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise ValueError(f"{what} is of shape {tuple(tensor.shape)}, more than the file holds")
        arrays[name] = as_float32(tensor, what)
    return arrays


def to_integer(tensor: Any, what: str) -> int:
    """Returns the one integer in a PyTorch tensor.

    Raises:
      ValueError: if there is anything else.
    """
    import torch

    if not isinstance(tensor, torch.Tensor) or not _is_dense(tensor) or tensor.shape != ():
        raise ValueError(f"{what} is a {type(tensor).__name__}; expected a tensor of one integer")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{what} is of type {tensor.dtype}; expected an integer")
    return int(tensor)


def _is_dense(tensor: Any) -> bool:
    import torch

    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested


def write(content: Mapping[str, Any], path: Path) -> None:
    """Writes a PyTorch file that does not exist yet, arrays in `content` as tensors.

    Raises:
      ValueError: if the file exists.
    """
    import torch

    def to_tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value, order="C"))
        if isinstance(value, Mapping):
            return {name: to_tensors(entry) for name, entry in value.items()}
        return value

    torch.save(to_tensors(content), files.absent(path))
