"""sparsify: `sae.safetensors` and `cfg.json` (github.com/EleutherAI/sparsify).

Its `SparseCoder` subtracts `b_dec` and ranks what a ReLU leaves, so an SAE without
centering is written centered, and a top-k of magnitudes doubled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_jax.architectures.base import SAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import fields, files, kinds, names, rewriting

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"

_NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
# The library assumes these values where an older config has no such field.
_DEFAULTS = {
    "activation": "topk",
    "signed": False,
    "skip_connection": False,
    "transcode": False,
    "num_latents": 0,
}


def save(sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes an SAE for `sparsify.SparseCoder.load_from_disk`.

    Args:
      sae: a `TopKSAE` that does not normalize its input.
      folder: where the two files go; neither may exist.
      metadata: JSON values to keep in the config.

    Returns:
      The folder.

    Raises:
      ValueError: if a file exists, the metadata is not JSON, or the format cannot hold
        the SAE.
    """
    folder = Path(folder)
    written, steps = rewriting.to_centered_relu_rule(sae, "sparsify")
    config = {
        "activation": "topk",
        "normalize_decoder": False,
        "num_latents": written.d_sae,
        "k": written.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": written.d_in,
        rewriting.NOTE: {"rewritten": steps, "metadata": dict(metadata or {})},
    }
    weights = names.to_theirs(kinds.arrays_of(written), _NAMES)
    return files.write_pair(config, folder / CONFIG, weights, folder / WEIGHTS)


def load(folder: str | Path) -> TopKSAE:
    """Loads the SAE in a folder of sparsify, whoever wrote it.

    Raises:
      ValueError: if a file is missing or damaged, or holds a transcoder, a skip
        connection, or another activation than top-k after a ReLU.
    """
    folder = Path(folder)
    path = folder / CONFIG
    config = _DEFAULTS | files.read_json(path)
    fields.choice(config, "activation", ("topk",), path)
    for name in ("signed", "skip_connection", "transcode"):
        if fields.boolean(config, name, path):
            raise fields.refused(name, True, "false", path)
    k = fields.integer(config, "k", path, minimum=1)

    weights = files.read_arrays(folder / WEIGHTS)
    files.check_names(weights, _NAMES, folder / WEIGHTS)
    sae = TopKSAE(names.to_ours(weights), k, rule="relu", center_input=True)
    fields.equal({"d_in": sae.d_in} | config, "d_in", sae.d_in, path)
    if fields.integer(config, "num_latents", path, minimum=0):
        fields.equal(config, "num_latents", sae.d_sae, path)
    elif fields.integer(config, "expansion_factor", path, minimum=1) * sae.d_in != sae.d_sae:
        allowed = f"{sae.d_sae} / {sae.d_in}, which the weights have"
        raise fields.refused("expansion_factor", config["expansion_factor"], allowed, path)
    return rewriting.undo(sae, config, path)


def load_metadata(folder: str | Path) -> dict[str, Any]:
    """Returns the metadata given to `save`, or the whole config of a folder that others wrote.

    Raises:
      ValueError: if the config is missing or damaged.
    """
    path = Path(folder) / CONFIG
    return rewriting.noted_metadata(files.read_json(path), path)
