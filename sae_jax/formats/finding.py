"""Finds out which format something on disk is in, or says what is there instead.

The names of its files tell a folder's format, the entries of a PyTorch file that of the file.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

from sae_jax.formats import (
    dictionary_learning,
    files,
    gemma_scope,
    native,
    openai,
    published,
    saelens,
    sparsify,
    torch_files,
)

# These formats have two files, one of weights and one of a config.
PAIRS = (native, saelens, dictionary_learning, sparsify)
# Weights of these names need no config beside them.
_ALONE = dict.fromkeys(gemma_scope.WEIGHTS, gemma_scope) | {
    dictionary_learning.WEIGHTS: dictionary_learning
}
_SUFFIXES = (".pt", ".npz", ".safetensors")

# `sae_jax.sweep` writes this file; it knows this layer, which does not know it.
_SWEEP = "sweep.json"

# Releases lie three folders deep: layer_12/width_16k/average_l0_71.
_DEPTH = 3
_NUM_SHOWN = 5
_NUM_VISITED = 1000


def find(path: Path) -> tuple[ModuleType, Path]:
    """Returns the module that reads what is at a path, and the place to point it at.

    Raises:
      ValueError: if there is no SAE or more than one; it names those that are near.
    """
    if path.is_file():
        return _module_of_file(path)
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}{_folders_with_saes(path.parent)}")
    names = {entry.name for entry in path.iterdir()}
    pairs = _pairs(names)
    if len(pairs) == 1:
        return pairs[0], path
    if not pairs:
        _refuse_sweep(path, names)
    # A library's folder may hold its trainer's files too: they count where nothing else does.
    files_alone = sorted(name for name in names if name.endswith((".pt", ".npz")))
    singles = [] if pairs else sorted(names & _ALONE.keys()) or files_alone
    if len(singles) == 1:
        return _module_of_file(path / singles[0])
    held = f"{_shown(singles)}; name one of them" if singles else _shown(sorted(names))
    expected = [*(f"{module.WEIGHTS} + {module.CONFIG}" for module in PAIRS), *_ALONE]
    raise ValueError(
        f"{path} holds {len(pairs) + len(singles)} SAEs: {held}; expected one of {expected}, or"
        f" one .pt or .npz file{_folders_with_saes(path)}"
    )


def _module_of_file(path: Path) -> tuple[ModuleType, Path]:
    owners = [module for module in PAIRS if path.name == module.WEIGHTS]
    complete = [module for module in owners if path.with_name(module.CONFIG).is_file()]
    if len(complete) == 1:
        return complete[0], path.parent
    if path.name in _ALONE:
        return _ALONE[path.name], path
    if owners:
        configs = " or ".join(module.CONFIG for module in owners)
        raise ValueError(f"{path} needs one {configs} beside it; there are {len(complete)}")
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"{path} is none of {list(_SUFFIXES)}; name the weights or the folder that it is in"
        )
    if path.suffix != ".pt":
        return gemma_scope, path
    content = torch_files.read(path)
    for module in (published, openai):
        if module.MARK in content:
            return module, path
    if dictionary_learning.recognizes(content):
        return dictionary_learning, path
    raise ValueError(
        f"{path} holds {_shown(sorted(content))}; expected {published.MARK!r} or {openai.MARK!r} "
        f"among them, or the entries of a class of dictionary_learning"
        f"{_folders_with_saes(path.parent)}"
    )


def _refuse_sweep(path: Path, names: set[str]) -> None:
    """Raises a ValueError that says how this project's own folders of many SAEs are read."""
    if _SWEEP not in names:
        return
    try:
        manifest = files.read_json(path / _SWEEP)
    except ValueError:  # The file is somebody else's.
        return
    if manifest.get("format") == "sae_jax_sweep":
        members = manifest.get("members", ())
        raise ValueError(
            f"{path} is a sweep of {len(members)} SAEs, not one: read it with SweepResult.load, or"
            f" name the folder of one member{_folders_with_saes(path)}"
        )
    if {"identity", "groups"} <= manifest.keys():
        raise ValueError(
            f"{path} holds checkpoints of a sweep, and no finished SAE: train_sweep with"
            " checkpoint_dir naming it goes on from there"
        )


def _folders_with_saes(root: Path) -> str:
    """Returns a clause that names the folders below which hold SAEs, or an empty one."""
    found = list(islice(_walk(root), _NUM_SHOWN + 1))
    return f"; in {root}, SAEs are in the folders {_shown(found)}" if found else ""


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, names in islice(os.walk(root), _NUM_VISITED):
        place = Path(folder).relative_to(root)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if len(place.parts) == _DEPTH:
            subfolders.clear()
        if place.parts and (_pairs(set(names)) or _ALONE.keys() & set(names)):
            yield place.as_posix()


def _pairs(names: set[str]) -> list[ModuleType]:
    """Returns the formats both of whose files are among some names."""
    return [module for module in PAIRS if {module.WEIGHTS, module.CONFIG} <= names]


def _shown(names: list[str]) -> str:
    """Shows the first few of some names."""
    return f"{names[:_NUM_SHOWN]}{' and more' if len(names) > _NUM_SHOWN else ''}"
