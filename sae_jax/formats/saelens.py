"""SAELens 6: `sae_weights.safetensors` and `cfg.json` (github.com/decoderesearch/SAELens).

It holds every SAE of this project but one: a top-k of magnitudes, which is doubled. (Its
`abstopk` architecture, read here, came with 6.54; the rest of 6 opens a doubled one.)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sae_jax.formats import fields, files, rewriting
from sae_jax.sae import SAE, JumpReLUSAE, TopKSAE

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"

# The version whose meaning of the config's fields is followed; later 6.x keep it.
_VERSION = "6.0.0"
_NAMES = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec"}
# What the library assumes where a config has no such field.
_DEFAULTS: dict[str, Any] = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,
    "metadata": {},
}
_RULES: dict[str, Literal["abs", "relu"]] = {"topk": "relu", "abstopk": "abs"}


def save(sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes an SAE for `sae_lens.SAE.load_from_disk`.

    Args:
      sae: a `TopKSAE` or a `JumpReLUSAE`.
      folder: where the two files go; neither may exist.
      metadata: JSON values to keep among SAELens' own metadata, where `model_name` and
        `hook_name` have a meaning.

    Returns:
      The folder.

    Raises:
      ValueError: if a file exists, the metadata is not JSON or names an entry that is
        written here, or the SAE is of another class.
    """
    folder = Path(folder)
    metadata = dict(metadata or {})
    if clash := metadata.keys() & {rewriting.NOTE, "sae_lens_version"}:
        raise ValueError(f"metadata has {sorted(clash)}, which are written by the format itself")
    steps: list[str] = []
    if isinstance(sae, TopKSAE):
        sae, steps = rewriting.to_relu_rule(sae)
        specific = {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(sae, JumpReLUSAE):
        specific = {"architecture": "jumprelu"}
    else:
        raise ValueError(f"SAELens files hold a TopKSAE or a JumpReLUSAE, no {type(sae).__name__}")
    params = rewriting.host_params(sae)
    weights = {name: params[ours] for name, ours in _NAMES.items()}
    if isinstance(sae, JumpReLUSAE):
        weights["threshold"] = np.asarray(sae.threshold[...], np.float32)
    config = specific | {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.center_input,
        "normalize_activations": "layer_norm" if sae.normalize_input else "none",
        "reshape_activations": "none",
        "metadata": metadata | {"sae_lens_version": _VERSION, rewriting.NOTE: {"rewritten": steps}},
    }
    files.absent(folder / WEIGHTS)
    files.write_json(config, folder / CONFIG)
    files.write_safetensors(weights, folder / WEIGHTS)
    return folder


def load(folder: str | Path) -> TopKSAE | JumpReLUSAE:
    """The SAE in a folder of SAELens 6, whoever wrote it.

    `rescale_acts_by_decoder_norm` is folded into the weights, an exact rewriting.

    Raises:
      ValueError: if a file is missing or damaged, or asks for an architecture, a
        normalization or a reshaping that the modules here do not have.
    """
    folder = Path(folder)
    path = folder / CONFIG
    config = _DEFAULTS | files.read_json(path)
    architecture = fields.choice(config, "architecture", ("topk", "abstopk", "jumprelu"), path)
    normalization = fields.choice(config, "normalize_activations", ("none", "layer_norm"), path)
    fields.choice(config, "reshape_activations", ("none",), path)
    metadata = fields.mapping(config, "metadata", path)
    center = fields.boolean(config, "apply_b_dec_to_input", path)
    normalize = normalization == "layer_norm"

    weights = files.read_safetensors(folder / WEIGHTS)
    names = (*_NAMES, "threshold") if architecture == "jumprelu" else tuple(_NAMES)
    files.check_names(weights, names, folder / WEIGHTS)
    params = {ours: weights[name] for name, ours in _NAMES.items()}
    if architecture == "jumprelu":
        threshold = weights["threshold"]
        jump = JumpReLUSAE(params, threshold, center_input=center, normalize_input=normalize)
        _check_sizes(jump, config, path)
        return jump

    k = fields.integer(config, "k", path, minimum=1)
    rule = _RULES[architecture]
    sae = TopKSAE(params, k, rule=rule, center_input=center, normalize_input=normalize)
    _check_sizes(sae, config, path)
    if fields.boolean(config, "rescale_acts_by_decoder_norm", path):
        sae = rewriting.fold_decoder_norms(sae)
    return rewriting.undo(sae, metadata, path)


def load_metadata(folder: str | Path) -> dict[str, Any]:
    """What SAELens calls the metadata, less what the format itself puts there.

    Raises:
      ValueError: if the config is missing or damaged.
    """
    path = Path(folder) / CONFIG
    metadata = fields.mapping(_DEFAULTS | files.read_json(path), "metadata", path)
    own = (rewriting.NOTE, "sae_lens_version")
    return {name: value for name, value in metadata.items() if name not in own}


def _check_sizes(sae: SAE, config: dict[str, Any], path: Path) -> None:
    fields.equal(config, "d_in", sae.d_in, path)
    fields.equal(config, "d_sae", sae.d_sae, path)
