"""Reads and writes SAEs in the project's own layout and in those that the field uses.

| format | read | written |
|---|---|---|
| `native` | yes | all, transcoders too |
| `saelens` | every version: SAEs, transcoders, checkpoints | all but TopK transcoders |
| `dictionary_learning` | every class of SAE | all SAEs without input normalization |
| `sparsify` | TopK | TopK without input normalization |
| `published` (the experiment's own checkpoints) | yes | the published rule only |
| Gemma Scope 1 and 2 | yes | no |
| OpenAI's state dicts | yes | no |

Native files give back the class that was saved. From any other, an SAE that is no top-k becomes a
JumpReLU that computes exactly the same: a ReLU has threshold 0, a batch top-k the one that it
infers by, a gated SAE one that follows from its biases. Nothing that is read can run code, and no
decoder vector is ever scaled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_jax.architectures.base import SAE
from sae_jax.formats import finding, openai, published

__all__ = ["WRITABLE", "load", "load_metadata", "save"]

_WRITERS = {module.__name__.rpartition(".")[2]: module for module in (*finding.PAIRS, published)}
WRITABLE = tuple(_WRITERS)
"""Names of the formats that `save` writes."""


def load(path: str | Path) -> SAE:
    """Loads the SAE at a path, whatever format it is in.

    Args:
      path: a folder that holds one SAE, or a file of weights.

    Raises:
      ValueError: if there is no SAE or more than one, or if what is there is damaged or
        asks for something that the modules here do not have.
    """
    module, place = finding.find(Path(path))
    return module.load(place)


def load_metadata(path: str | Path) -> dict[str, Any]:
    """Returns what the files at a path tell of an SAE beside its parameters; see `load`.

    Raises:
      ValueError: if there is no SAE or more than one, or what is read is damaged.
    """
    module, place = finding.find(Path(path))
    if module is openai:
        return {}  # These files hold weights alone.
    return module.load_metadata(place)


def save(
    sae: SAE, folder: str | Path, *, format: str, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes an SAE to a folder in one of the formats that `WRITABLE` names.

    What a format cannot say directly is rewritten exactly and noted in the written
    config (see `rewriting`), or refused.

    Args:
      sae: an SAE or a transcoder; the table above says which a format holds.
      folder: created where absent; nothing in it is overwritten.
      format: the name of the format.
      metadata: JSON values to keep beside the SAE. The published format needs `layer`
        and `position` among them.

    Returns:
      The path to give to `load`: the folder, or the one file of the published format.

    Raises:
      ValueError: if the format is unknown or cannot hold the SAE, or a file exists.
    """
    if format not in _WRITERS:
        raise ValueError(f"format is {format!r}; allowed are {list(WRITABLE)}")
    return _WRITERS[format].save(sae, folder, metadata)
