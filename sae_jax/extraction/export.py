"""Imports activations from files of torch, .npy, .npz and safetensors, and exports them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

from sae_jax.activations.arrays import as_float32
from sae_jax.activations.selection import Selection
from sae_jax.activations.store import ActivationStore
from sae_jax.activations.writer import write_store
from sae_jax.extraction.torch_files import read_torch_file
from sae_jax.problems import Problem

SLICE_SUFFIXES = (".npy", ".npz", ".safetensors")

_ARRAY_NAME = "activations"
_ROW_METADATA = ("problem_ids", "layers", "positions", "cot_sequences")


def import_published(
    files: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
) -> ActivationStore:
    """Imports the published experiment's `full_{train,val}_activations.pt` into one store.

    A file is a dict of `activations`, `[n, d_in]`, and `metadata` with a problem id, layer,
    position and list of chain-of-thought steps for each of its n rows, in any order. Problems
    keep the order in which they first appear, file after file. The files already are the two
    sides of the published split: import each into a store of its own to keep it.

    Args:
      files: paths of the torch files.
      output: folder of the store.
      dtype: dtype of the store, "float16" or "float32".
      overwrite: whether to replace a store that is there.

    Raises:
      ValueError: if a file has another layout, holds more than tensors and plain values, or
        does not have every problem at every layer and position once.
    """
    contents = [_read_published(Path(file)) for file in files]
    values = np.concatenate([activations for activations, _ in contents])
    ids, layers, positions, steps = (
        [value for _, metadata in contents for value in metadata[name]] for name in _ROW_METADATA
    )
    steps_of: dict[str, tuple[str, ...]] = {}
    for problem_id, row_steps in zip(ids, steps, strict=True):
        steps_of.setdefault(str(problem_id), tuple(row_steps))
    rows: dict[tuple[int, int], dict[str, int]] = {}
    for row, (problem_id, layer, position) in enumerate(zip(ids, layers, positions, strict=True)):
        of_slice = rows.setdefault((int(layer), int(position)), {})
        if str(problem_id) in of_slice:
            raise ValueError(
                f"problem {problem_id} is there twice at layer {layer}, position {position}"
            )
        of_slice[str(problem_id)] = row
    for (layer, position), of_slice in rows.items():
        if len(of_slice) < len(steps_of):
            raise ValueError(
                f"layer {layer}, position {position} has {len(of_slice)} of {len(steps_of)} "
                "problems"
            )
    return write_store(
        output,
        {key: values[[of_slice[id] for id in steps_of]] for key, of_slice in rows.items()},
        [Problem(id, question="", steps=steps) for id, steps in steps_of.items()],
        {"imported_from": [Path(file).name for file in files]},
        dtype=dtype,
        overwrite=overwrite,
    )


def import_slice(
    file: str | os.PathLike,
    output: str | os.PathLike,
    *,
    layer: int,
    position: int,
    problems: Sequence[Problem] | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> ActivationStore:
    """Imports one array `[n, d_in]` as a store of one layer and position.

    The array may be of bfloat16. NumPy writes that as dtype `|V2`, elements of two bytes without
    a meaning, and a `|V2` array is read as bfloat16.

    Args:
      file: path of a .npy file, or of a .npz or .safetensors file with an array "activations".
      output: folder of the store.
      layer: 0-based decoder layer that the activations are from.
      position: continuous-thought or token position that they are from.
      problems: the problem of each row; rows are numbered if None.
      dtype: dtype of the store, "float16" or "float32".
      overwrite: whether to replace a store that is there.

    Raises:
      ValueError: if the file is of another kind, is damaged, or holds no such array of floats.
    """
    array = _read_slice(Path(file))
    if problems is None:
        problems = [Problem(f"row-{row}", question="") for row in range(len(array))]
    return write_store(
        output,
        {(layer, position): array},
        problems,
        {"imported_from": [Path(file).name]},
        dtype=dtype,
        overwrite=overwrite,
    )


def export_slice(selection: Selection, file: str | os.PathLike) -> None:
    """Writes a selection's activations, float32 `[n, d_in]`, in the format of the suffix.

    A .npz file also holds the `problem_ids` of the rows, and a .safetensors file names model,
    layer and position in its metadata.

    Raises:
      ValueError: if the suffix is unknown, or the file exists.
    """
    target = Path(file)
    _check_suffix(target)
    if target.exists():
        raise ValueError(f"{target} exists; it is left as is")
    if target.suffix == ".npy":
        np.save(target, selection.activations, allow_pickle=False)
    elif target.suffix == ".npz":
        ids = np.array([problem.id for problem in selection.problems])
        np.savez(target, activations=selection.activations, problem_ids=ids)
    else:
        metadata = {
            "model": selection.store.manifest["model"],
            "layer": str(selection.layer),
            "position": str(selection.position),
        }
        save_file({_ARRAY_NAME: selection.activations}, target, metadata)


def _read_published(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    match read_torch_file(file):
        case {"activations": torch.Tensor(ndim=2) as activations, "metadata": dict(metadata)}:
            pass
        case _:
            raise ValueError(f"{file} must hold 'activations' [n, d_in] and a dict 'metadata'")
    for name in _ROW_METADATA:
        if (found := len(metadata.get(name, ()))) != len(activations):
            raise ValueError(
                f"{file} has {len(activations)} activations and {found} {name}; expected one a row"
            )
    return as_float32(activations, f"{file}, 'activations'"), metadata


def _read_slice(file: Path) -> np.ndarray:
    _check_suffix(file)
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    content: Any
    try:
        if file.suffix == ".safetensors":
            content = load_file(file)  # By torch, since NumPy has no name for bfloat16.
        else:
            content = np.load(file, mmap_mode="r", allow_pickle=False)
        array = content if file.suffix == ".npy" else content[_ARRAY_NAME]
    except KeyError as error:
        raise ValueError(
            f"{file} has no array {_ARRAY_NAME!r}; it has {sorted(content)}"
        ) from error
    except (EOFError, BadZipFile, SafetensorError) as error:
        raise ValueError(f"{file} is no whole {file.suffix} file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if array.ndim != 2:
        found = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"{file} holds {found}; expected floats [n, d_in]")
    as_float32(array[:0], str(file))
    return array


def _check_suffix(file: Path) -> None:
    if file.suffix not in SLICE_SUFFIXES:
        raise ValueError(f"{file} ends in {file.suffix!r}; allowed: {', '.join(SLICE_SUFFIXES)}")
