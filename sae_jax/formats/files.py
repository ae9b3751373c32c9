"""Files of unknown origin: read without running anything in them, checked on the way in."""

import json
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

Arrays = dict[str, np.ndarray]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: if the file is missing or does not hold one JSON object.
    """
    try:
        content = json.loads(_existing(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content


def read_safetensors(path: Path) -> Arrays:
    """The arrays in a safetensors file, floats as float32.

    Raises:
      ValueError: if the file is missing, damaged, or holds anything but floats.
    """
    try:
        arrays = safetensors_numpy.load_file(_existing(path))
    except Exception as error:  # A damaged file can fail in any way; none of them is ours.
        raise ValueError(f"{path} is not readable as safetensors: {error!r}") from error
    return {name: _float32(array, f"{name} in {path}") for name, array in arrays.items()}


def read_npz(path: Path) -> Arrays:
    """The arrays in a NumPy archive, floats as float32.

    Raises:
      ValueError: if the file is missing, damaged, or holds pickled objects or no floats.
    """
    try:
        with np.load(_existing(path), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # As above.
        raise ValueError(f"{path} is not readable as a NumPy archive: {error!r}") from error
    return {name: _float32(array, f"{name} in {path}") for name, array in arrays.items()}


def read_torch(path: Path) -> dict[str, Any]:
    """The dict in a PyTorch file, read by the unpickler that builds nothing but data.

    Raises:
      ValueError: if the file is missing, damaged, or holds anything but tensors and
        plain values in a dict with string keys.
    """
    import torch

    _existing(path)
    try:
        if zipfile.is_zipfile(path):
            # PyTorch does not compare the checksums that it writes.
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} does not have its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # As above.
        raise ValueError(f"{path} is not readable as a file of tensors: {error!r}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of names")
    return content


def from_tensors(tensors: Mapping[str, Any], path: Path) -> Arrays:
    """PyTorch tensors as float32 arrays.

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
        if not tensor.is_floating_point():
            raise ValueError(f"{what} is of type {tensor.dtype}; expected floats")
        arrays[name] = tensor.detach().to(torch.float32).numpy()
    return arrays


def integer_from_tensor(tensor: Any, what: str) -> int:
    """The one integer in a PyTorch tensor.

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


def write_torch(content: Mapping[str, Any], path: Path) -> None:
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

    torch.save(to_tensors(content), absent(path))


def plain(content: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """A copy of a mapping of plain values, as JSON keeps them.

    Raises:
      ValueError: if it holds what JSON cannot.
    """
    return json.loads(_to_json(content, where))


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes a JSON object to a file that does not exist yet.

    Numbers that are not finite, such as the metrics of a diverged SAE, are written as
    Python's json module does.

    Raises:
      ValueError: if the file exists or the content is not JSON.
    """
    text = _to_json(content, path)
    absent(path).write_text(text + "\n", encoding="utf-8")


def write_safetensors(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes arrays to a safetensors file that does not exist yet.

    Raises:
      ValueError: if the file exists.
    """
    # safetensors copies an array's memory as it lies, so views must be made contiguous.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors_numpy.save_file(contiguous, absent(path))


def absent(path: Path) -> Path:
    """The path, once it is sure that nothing there would be overwritten.

    Raises:
      ValueError: if something is there already.
    """
    if path.exists():
        raise ValueError(f"{path} exists already; saving never overwrites")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _to_json(content: Mapping[str, Any], where: Path) -> str:
    try:
        return json.dumps(content, indent=2)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not all of it can be written as JSON: {error}") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def check_names(found: Collection[str], expected: Collection[str], where: Path | str) -> None:
    """Checks that a file holds exactly the entries that its format calls for.

    Raises:
      ValueError: if an entry is missing or unknown.
    """
    if set(found) != set(expected):
        raise ValueError(f"{where} holds {sorted(found)}; expected {sorted(expected)}")


def _float32(array: Any, what: str) -> np.ndarray:
    if not isinstance(array, np.ndarray):  # NumPy hands over other members' bytes as they are.
        raise ValueError(f"{what} is not an array")
    if array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(f"{what} is of type {array.dtype}; expected floats")
    return array.astype(np.float32)
