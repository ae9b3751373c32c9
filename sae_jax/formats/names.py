"""What other libraries call the arrays of an SAE."""

from collections.abc import Collection, Mapping

import numpy as np

from sae_jax.formats.files import Arrays

_NAMES = {
    "w_enc": ("W_enc", "encoder.weight"),
    "b_enc": ("b_enc", "encoder.bias", "latent_bias"),
    "w_dec": ("W_dec", "decoder.weight"),
    "b_dec": ("b_dec", "decoder.bias", "decoder_bias", "bias", "pre_bias"),
    "b_gate": ("b_gate", "gate_bias"),
    "b_mag": ("b_mag", "mag_bias"),
    "r_mag": ("r_mag",),
    "threshold": ("threshold", "topk_threshold"),
}
_OURS = {theirs: ours for ours, names in _NAMES.items() for theirs in names}


def to_ours(weights: Mapping[str, np.ndarray]) -> Arrays:
    """Renames the arrays of another library, all of whose names are known here."""
    return {_OURS[name]: _turned(name, array) for name, array in weights.items()}


def to_theirs(arrays: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    """Gives the arrays of an SAE the names of another library."""
    arrays = {"b_gate": arrays["b_enc"], **arrays}  # The gate's bias of a `GatedSAE`.
    return {name: _turned(name, arrays[_OURS[name]]) for name in names}


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    # A linear layer of PyTorch keeps the transpose of the matrix that it multiplies by.
    return array.T if name.endswith(".weight") else array
