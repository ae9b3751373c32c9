"""SAEs on disk: the project's own layout, and those of the libraries that the field uses.

| format | read | written |
|---|---|---|
| `native` | yes | yes |
| `saelens` (SAELens 6) | yes | yes |
| `dictionary_learning` | yes | yes, without input normalization |
| `sparsify` | yes | yes, without input normalization |
| `published` (the experiment's own checkpoints) | yes | the published rule only |
| Gemma Scope's `params.npz` | yes | no |
| OpenAI's state dicts | yes | no |

Nothing that is read can run code, and no decoder vector is ever scaled.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sae_jax.formats import (
    dictionary_learning,
    gemma_scope,
    native,
    openai,
    published,
    saelens,
    sparsify,
    torch_files,
)
from sae_jax.sae import SAE, JumpReLUSAE, TopKSAE

__all__ = ["WRITABLE", "load", "load_metadata", "save"]

_FOLDERS = {
    "native": native,
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}
_WRITERS = _FOLDERS | {"published": published}
WRITABLE = tuple(_WRITERS)
"""Names of the formats that `save` writes."""


def load(path: str | Path) -> TopKSAE | JumpReLUSAE:
    """The SAE at a path, whatever format it is in.

    Args:
      path: a folder that holds one SAE, or a `.pt` or `.npz` file.

    Raises:
      ValueError: if there is no SAE or more than one, or if what is there is damaged or
        asks for something that the modules here do not have.
    """
    module, place = _detect(Path(path))
    return module.load(place)


def load_metadata(path: str | Path) -> dict[str, Any]:
    """What is told of the SAE at a path beside its parameters; see `load`.

    Raises:
      ValueError: as `load`, as far as it gets there.
    """
    module, place = _detect(Path(path))
    if module in (gemma_scope, openai):
        return {}  # These files hold weights alone.
    return module.load_metadata(place)


def save(
    sae: SAE, folder: str | Path, *, format: str, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes an SAE to a folder in one of the formats that `WRITABLE` names.

    What a format cannot say directly is rewritten exactly and noted in the written
    config (see `rewriting`), or refused.

    Args:
      sae: a `TopKSAE` or a `JumpReLUSAE`.
      folder: created where absent; nothing in it is overwritten.
      format: the name of the format.
      metadata: JSON values to keep beside the SAE. The published format needs `layer`
        and `position` among them.

    Returns:
      What to give to `load`: the folder, or the one file of the published format.

    Raises:
      ValueError: if the format is unknown or cannot hold the SAE, or a file exists.
    """
    if format not in _WRITERS:
        raise ValueError(f"format is {format!r}; allowed are {list(WRITABLE)}")
    return _WRITERS[format].save(sae, folder, metadata)


def _detect(path: Path) -> tuple[ModuleType, Path]:
    """The module that reads what is at a path, and the place to point it at."""
    if path.is_file():
        return _module_of_file(path), path
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}")
    names = {entry.name for entry in path.iterdir()}
    pairs = [module for module in _FOLDERS.values() if {module.WEIGHTS, module.CONFIG} <= names]
    # A library's folder may hold its trainer's .pt files too: they count where no pair does.
    singles = [] if pairs else [name for name in names if name.endswith((".pt", ".npz"))]
    if len(pairs) + len(singles) != 1:
        expected = [f"{module.WEIGHTS} + {module.CONFIG}" for module in _FOLDERS.values()]
        raise ValueError(
            f"{path} holds {len(pairs) + len(singles)} SAEs: {sorted(names)}; "
            f"expected one of {expected}, or one .pt or .npz file"
        )
    if pairs:
        return pairs[0], path
    file = path / singles[0]
    return _module_of_file(file), file


def _module_of_file(path: Path) -> ModuleType:
    if path.suffix == ".npz":
        return gemma_scope
    if path.suffix != ".pt":
        raise ValueError(f"{path} is neither a .pt nor an .npz file; name the folder that it is in")
    content = torch_files.read(path)
    for module in (published, openai):
        if module.MARK in content:
            return module
    raise ValueError(
        f"{path} holds {sorted(content)}; expected {published.MARK!r} or {openai.MARK!r} among them"
    )
