"""Gemma Scope 1 and 2: JumpReLU SAEs, one archive each, which do not center their input.

`params.npz` (Lieberum et al. 2024, arXiv:2408.05147; huggingface.co/google/gemma-scope) or,
of Gemma Scope 2 (2025; huggingface.co/google/gemma-scope-2), `params.safetensors` with a
`config.json`. The format is read only.
"""

from pathlib import Path
from typing import Any

from sae_jax.architectures.base import PARAM_NAMES
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.formats import fields, files

WEIGHTS = ("params.npz", "params.safetensors")
CONFIG = "config.json"

# The transcoders that were released beside the SAEs have this entry.
_SKIP = "affine_skip_connection"


def load(path: str | Path) -> JumpReLUSAE:
    """Loads the SAE in an archive.

    Raises:
      ValueError: if the file is missing or damaged, holds something else than expected, or
        is that of a transcoder.
    """
    path = Path(path)
    arrays = files.read_arrays(path)
    _check_kind(arrays, load_metadata(path), path)
    lower = {name.lower(): array for name, array in arrays.items()}  # Gemma Scope 1 has W_enc.
    files.check_names(lower, (*PARAM_NAMES, "threshold"), path)
    if len(lower) < len(arrays):
        raise ValueError(f"{path} holds {sorted(arrays)}, some of them in two spellings")
    threshold = lower.pop("threshold")
    return JumpReLUSAE(lower, threshold)


def load_metadata(path: str | Path) -> dict[str, Any]:
    """Returns the config beside an archive of Gemma Scope 2, or an empty one where there is none.

    Raises:
      ValueError: if the config is damaged.
    """
    config = Path(path).with_name(CONFIG)
    return files.read_json(config) if Path(path).suffix != ".npz" and config.is_file() else {}


def _check_kind(arrays: files.Arrays, config: dict[str, Any], path: Path) -> None:
    source = config.get("hf_hook_point_in")
    across = (
        _SKIP in arrays
        or "w_dec" in arrays
        and arrays["w_dec"].ndim == 3  # It has one decoder for each layer.
        or config.get("type", "sae") != "sae"
        or config.get("hf_hook_point_out", source) != source
    )
    if across:
        raise ValueError(
            f"{path} is a transcoder of Gemma Scope, which predicts other activations than it"
            " reads; sae_jax reads its SAEs"
        )
    stated = {"architecture": "jump_relu"} | config
    fields.choice(stated, "architecture", ("jump_relu",), path.with_name(CONFIG))
