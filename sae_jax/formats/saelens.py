"""SAELens: `sae_weights.safetensors` and `cfg.json` (github.com/decoderesearch/SAELens).

Every version is read, version 6 is written. A batch top-k, nested or not, is written as SAELens
itself saves it for inference, as a JumpReLU. A top-k of magnitudes is doubled. (Its `abstopk`
architecture, which is read here, came with 6.54; earlier releases open a doubled SAE.)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sae_jax.architectures.base import SAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import fields, files, kinds, names, rewriting, saelens_legacy

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"

# The config's fields mean here what they mean in this version; later 6.x keep it.
_VERSION = "6.0.0"
# The library assumes these values where a config has no such field.
_DEFAULTS: dict[str, Any] = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "rescale_acts_by_decoder_norm": False,
    "metadata": {},
}
_RULES: dict[str, Literal["abs", "relu"]] = {"topk": "relu", "abstopk": "abs"}
_NORMALIZED = ("none", "layer_norm")
_SHAPED = ("none", "hook_z")
# These were trained by a top-k of a whole batch; checkpoints of training keep the names.
_BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
# These predict other activations than they read; they do not subtract `b_dec`.
_TRANSCODERS = ("transcoder", "jumprelu_transcoder")
# The weights of each architecture hold these arrays beside the matrices and `b_dec`.
_OTHERS: dict[str, tuple[str, ...]] = {
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "transcoder": ("b_enc",),
    "jumprelu_transcoder": ("b_enc", "threshold"),
} | dict.fromkeys(_BATCH_TOPK, ("b_enc", "topk_threshold"))


def save(sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes an SAE for `sae_lens.SAE.load_from_disk`.

    Args:
      sae: an SAE of any kind, or a transcoder that is no `TopKSAE`. One whose widths are equal is
        a transcoder if `metadata` has a `hook_name_out`.
      folder: where the two files go; neither may exist.
      metadata: JSON values to keep among SAELens' own metadata, where `model_name` and
        `hook_name` have a meaning.

    Returns:
      The folder.

    Raises:
      ValueError: if a file exists, the metadata is not JSON or names an entry that is
        written here, or the SAE is of another class, or a transcoder that SAELens has not.
    """
    folder = Path(folder)
    metadata = dict(metadata or {})
    if clash := metadata.keys() & {rewriting.NOTE, "sae_lens_version"}:
        raise ValueError(f"metadata has {sorted(clash)}, which are written by the format itself")
    written, architecture, steps = _held(sae, is_transcoder="hook_name_out" in metadata)
    is_transcoder = architecture in _TRANSCODERS
    config: dict[str, Any] = {"architecture": architecture}
    if isinstance(written, TopKSAE):
        config |= {"k": written.k, "rescale_acts_by_decoder_norm": False}
    config |= {"d_out": written.d_out} if is_transcoder else {}
    config |= {
        "d_in": written.d_in,
        "d_sae": written.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": written.center_input,
        "normalize_activations": "layer_norm" if written.normalize_input else "none",
        "reshape_activations": "none",
        "metadata": metadata | {"sae_lens_version": _VERSION, rewriting.NOTE: {"rewritten": steps}},
    }
    entries = ("W_enc", "W_dec", "b_dec", *_OTHERS[architecture])
    weights = names.to_theirs(kinds.arrays_of(written), entries)
    return files.write_pair(config, folder / CONFIG, weights, folder / WEIGHTS)


def _held(sae: SAE, is_transcoder: bool) -> tuple[SAE, str, list[str]]:
    """Returns what SAELens can hold of an SAE: that, its architecture, and the rewritings."""
    kind = kinds.kind_of(sae)
    if is_transcoder or sae.d_out != sae.d_in:
        if isinstance(sae, TopKSAE) or sae.normalize_input:
            raise ValueError(
                f"SAELens has {list(_TRANSCODERS)}, and no transcoder that is a TopKSAE or"
                f" normalizes its input; this is a {type(sae).__name__} whose normalize_input is"
                f" {sae.normalize_input}"
            )
        plain, steps = rewriting.to_centering(sae, False)
        if kind == "relu":
            return plain, "transcoder", steps
        return rewriting.to_jumprelu(plain), "jumprelu_transcoder", steps
    if isinstance(sae, TopKSAE):
        single, steps = rewriting.to_relu_rule(sae)
        return single, "topk", steps
    if kind in ("relu", "gated"):
        return sae, {"relu": "standard"}.get(kind, kind), []
    return rewriting.to_jumprelu(sae), "jumprelu", []


def load(folder: str | Path) -> TopKSAE | JumpReLUSAE:
    """Loads the SAE in a folder of SAELens, whoever wrote it.

    A ReLU is a JumpReLU of threshold 0, a gated SAE is one too (`rewriting.gated_to_jumprelu`),
    and so is a batch top-k with the threshold that SAELens infers by.
    `rescale_acts_by_decoder_norm` is folded into the weights, an exact rewriting. An SAE of
    attention heads reads their outputs side by side, `[n, num_heads * d_head]`.

    Raises:
      ValueError: if a file is missing or damaged, or asks for an architecture or a
        normalization that the modules here do not have.
    """
    folder = Path(folder)
    path = folder / CONFIG
    config = _read_config(path)
    architecture = _architecture(config, path)
    is_transcoder = architecture in _TRANSCODERS
    # A transcoder of SAELens would not give the output a scale back, nor take heads side by side.
    normalizations, shapes = (("none",), ("none",)) if is_transcoder else (_NORMALIZED, _SHAPED)
    normalization = fields.choice(config, "normalize_activations", normalizations, path)
    fields.choice(config, "reshape_activations", shapes, path)
    metadata = fields.mapping(config, "metadata", path)
    options: dict[str, Any] = {
        "center_input": fields.boolean(config, "apply_b_dec_to_input", path),
        "normalize_input": normalization == "layer_norm",
    }
    params = names.to_ours(_read_weights(folder / WEIGHTS, architecture))
    sae: TopKSAE | JumpReLUSAE
    if architecture in _RULES:
        k = fields.integer(config, "k", path, minimum=1)
        sae = TopKSAE(params, k, rule=_RULES[architecture], **options)
    elif architecture == "gated":
        sae = rewriting.gated_to_jumprelu(params, **options)
    else:
        threshold = params.pop("threshold", np.zeros((), np.float32))  # That of a ReLU is 0.
        if architecture in ("standard", "transcoder", *_BATCH_TOPK):
            what = f"topk_threshold in {folder / WEIGHTS}"
            threshold = files.for_each_latent(threshold, params["b_enc"], what)
        sae = JumpReLUSAE(params, threshold, **options)
    fields.equal(config, "d_in", sae.d_in, path)
    fields.equal(config, "d_sae", sae.d_sae, path)
    if is_transcoder:
        fields.equal(config, "d_out", sae.d_out, path)
    elif sae.d_out != sae.d_in:
        raise fields.refused("architecture", architecture, f"one of {list(_TRANSCODERS)}", path)
    rescaled = fields.boolean(config, "rescale_acts_by_decoder_norm", path)
    if rescaled and architecture in (*_RULES, *_BATCH_TOPK):  # The others have no such field.
        sae = rewriting.fold_decoder_norms(sae)
    return rewriting.undo(sae, metadata, path) if isinstance(sae, TopKSAE) else sae


def load_metadata(folder: str | Path) -> dict[str, Any]:
    """Returns what SAELens calls the metadata, less what the format itself puts there.

    Raises:
      ValueError: if the config is missing or damaged.
    """
    path = Path(folder) / CONFIG
    metadata = fields.mapping(_read_config(path), "metadata", path)
    own = (rewriting.NOTE, "sae_lens_version")
    return {name: value for name, value in metadata.items() if name not in own}


def _read_config(path: Path) -> dict[str, Any]:
    return _DEFAULTS | saelens_legacy.modernize(files.read_json(path), path)


def _architecture(config: dict[str, Any], path: Path) -> str:
    if "skip_transcoder" in str(config.get("architecture")):
        raise ValueError(
            f"{path.parent} is a transcoder of SAELens with a skip connection, which no module here"
            f" has; sae_jax reads its architectures {list(_OTHERS)}"
        )
    architecture = fields.choice(config, "architecture", tuple(_OTHERS), path)
    if architecture in _TRANSCODERS and fields.boolean(config, "apply_b_dec_to_input", path):
        raise fields.refused("apply_b_dec_to_input", True, "false for a transcoder", path)
    return architecture


def _read_weights(path: Path, architecture: str) -> files.Arrays:
    weights = files.read_arrays(path)
    # For a time this entry was always written, and used only after a fine-tuning of its factors.
    if not np.allclose(weights.pop("scaling_factor", 1.0), 1.0):
        raise ValueError(f"scaling_factor in {path} is other than 1; such an SAE is not read")
    if "jumprelu" in architecture and "log_threshold" in weights:  # Older training kept this.
        weights["threshold"] = np.exp(weights.pop("log_threshold"))
    files.check_names(weights, ("W_enc", "W_dec", "b_dec", *_OTHERS[architecture]), path)
    return weights
