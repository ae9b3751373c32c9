"""Files of unknown origin, read without running anything in them and checked on the way in."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from sae_jax.activations.arrays import as_float32

Arrays = dict[str, np.ndarray]


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file, in any encoding of Unicode, with or without a mark of it.

    Raises:
      ValueError: if the file is missing or does not hold one JSON object.
    """
    try:
        content = json.loads(existing(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content


def read_arrays(path: Path) -> Arrays:
    """Reads the arrays in a NumPy archive, if the path ends in .npz, or in a safetensors file.

    Returns:
      The arrays by name, as float32.

    Raises:
      ValueError: if the file is missing, damaged, or holds anything but arrays of floats.
    """
    existing(path)
    is_archive = path.suffix == ".npz"
    try:
        if is_archive:
            with np.load(path, allow_pickle=False) as archive:
                arrays = dict(archive)
        else:
            arrays = safetensors_numpy.load_file(path)
    except Exception as error:  # A damaged file can fail in any way; none of them is ours.
        kind = "a NumPy archive" if is_archive else "safetensors"
        raise ValueError(f"{path} is not readable as {kind}: {error!r}") from error
    return {name: as_float32(array, f"{name} in {path}") for name, array in arrays.items()}


def plain(content: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Copies a mapping of plain values, as JSON keeps them.

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


def write_pair(
    config: Mapping[str, Any], config_file: Path, arrays: Mapping[str, np.ndarray], weights: Path
) -> Path:
    """Writes an SAE as a JSON file and a safetensors file in one folder.

    Returns:
      The folder.

    Raises:
      ValueError: if a file exists or the config is not JSON; then nothing is written.
    """
    absent(weights)
    write_json(config, config_file)
    # safetensors copies an array's memory as it lies, so views must be made contiguous.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    safetensors_numpy.save_file(contiguous, weights)
    return weights.parent


def absent(path: Path) -> Path:
    """Returns the path, once it is sure that nothing there would be overwritten.

    Raises:
      ValueError: if something is there already.
    """
    if path.exists():
        raise ValueError(f"{path} exists already; saving never overwrites")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def existing(path: Path) -> Path:
    """Returns the path, once it is sure that there is a file that can be opened.

    Raises:
      ValueError: if there is none.
      OSError: if the system does not open it; readers would take that for damage.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    path.open("rb").close()
    return path


def check_names(found: Collection[str], expected: Collection[str], where: Path) -> None:
    """Checks that a file holds exactly the entries that its format calls for.

    Raises:
      ValueError: if an entry is missing or unknown.
    """
    if set(found) != set(expected):
        raise ValueError(f"{where} holds {sorted(found)}; expected {sorted(expected)}")


def for_each_latent(number: np.ndarray, b_enc: np.ndarray, what: str) -> np.ndarray:
    """Repeats one number, a threshold `[]`, for each latent: `[F]`, as `b_enc`.

    Raises:
      ValueError: if it is more than one; `what` is its name in the error.
    """
    if number.shape != ():
        raise ValueError(f"{what} has shape {number.shape}; expected one number")
    return np.full_like(b_enc, number)


def _to_json(content: Mapping[str, Any], where: Path) -> str:
    try:
        return json.dumps(content, indent=2)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not all of it can be written as JSON: {error}") from error
