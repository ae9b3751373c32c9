"""Gemma Scope: one archive `params.npz` of a JumpReLU SAE (Lieberum et al. 2024).

Reference: arXiv:2408.05147; weights are at huggingface.co/google/gemma-scope. Read only.
"""

from pathlib import Path

from sae_jax.formats import files
from sae_jax.sae import JumpReLUSAE

WEIGHTS = "params.npz"

_NAMES = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec"}


def load(path: str | Path) -> JumpReLUSAE:
    """The SAE in an archive; it does not center its input.

    Raises:
      ValueError: if the file is missing or damaged, or holds something else than expected.
    """
    path = Path(path)
    arrays = files.read_npz(path)
    files.check_names(arrays, (*_NAMES, "threshold"), path)
    params = {ours: arrays[name] for name, ours in _NAMES.items()}
    return JumpReLUSAE(params, arrays["threshold"])
