"""OpenAI's TopK SAEs: one PyTorch state dict (github.com/openai/sparse_autoencoder).

Reference: Gao et al. 2024, arXiv:2406.04093. The format is read only. The published code
normalizes the input of a TopK SAE by each sample's mean and deviation, and of no other.
"""

from pathlib import Path

from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import fields, files, names, torch_files

MARK = "pre_bias"
"""An entry that no other format's PyTorch file has."""

_NAMES = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def load(path: str | Path) -> TopKSAE:
    """Loads the SAE in a state dict; it centers and normalizes its input.

    Raises:
      ValueError: if the file is missing or damaged, or holds another activation function
        than a top-k followed by a ReLU.
    """
    path = Path(path)
    state = {"activation": "TopK"} | torch_files.read(path)
    fields.choice(state, "activation", ("TopK",), path)
    activation = {"postact_fn": "ReLU"} | fields.mapping(state, "activation_state_dict", path)
    fields.choice(activation, "postact_fn", ("ReLU",), path)
    k = fields.integer(activation, "k", path, minimum=1)
    others = ("activation", "activation_state_dict", *_STATISTICS)
    state = {name: entry for name, entry in state.items() if name not in others}
    files.check_names(state, _NAMES, path)
    params = names.to_ours(torch_files.to_arrays(state, path))
    return TopKSAE(params, k, rule="relu", center_input=True, normalize_input=True)
