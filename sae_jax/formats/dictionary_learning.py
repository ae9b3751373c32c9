"""dictionary_learning: `ae.pt` and `config.json` (github.com/saprmarks/dictionary_learning).

Its `AutoEncoderTopK` subtracts `b_dec` and ranks what a ReLU leaves, so an SAE without
centering is written centered, and a top-k of magnitudes doubled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.formats import fields, files, rewriting, torch_files
from sae_jax.sae import SAE, TopKSAE

WEIGHTS = "ae.pt"
CONFIG = "config.json"

_NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
# The library's mark of a threshold that was never estimated: it then ranks by top-k.
_NO_THRESHOLD = -1.0


def save(sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes an SAE for `dictionary_learning.utils.load_dictionary`.

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
    written, steps = rewriting.to_centered_relu_rule(sae, "dictionary_learning")
    params = rewriting.host_params(written)
    state = {
        "encoder.weight": params["w_enc"].T,
        "encoder.bias": params["b_enc"],
        "decoder.weight": params["w_dec"].T,
        "b_dec": params["b_dec"],
        "k": np.asarray(written.k, np.int32),
        "threshold": np.asarray(_NO_THRESHOLD, np.float32),
    }
    config = {
        "trainer": {
            "trainer_class": "TopKTrainer",
            "dict_class": "AutoEncoderTopK",
            "activation_dim": written.d_in,
            "dict_size": written.d_sae,
            "k": written.k,
        },
        rewriting.NOTE: {"rewritten": steps, "metadata": dict(metadata or {})},
    }
    files.absent(folder / WEIGHTS)
    files.write_json(config, folder / CONFIG)
    torch_files.write(state, folder / WEIGHTS)
    return folder


def load(folder: str | Path) -> TopKSAE:
    """The SAE in a folder of dictionary_learning, whoever wrote it.

    The threshold that the library estimates for encoding without top-k is not used.

    Raises:
      ValueError: if a file is missing or damaged, or holds another class than
        `AutoEncoderTopK`.
    """
    folder = Path(folder)
    path = folder / CONFIG
    config = files.read_json(path)
    trainer = fields.mapping(config, "trainer", path)
    fields.choice(trainer, "dict_class", ("AutoEncoderTopK",), path)

    state = torch_files.read(folder / WEIGHTS)
    state.pop("threshold", None)
    files.check_names(state, (*_NAMES, "k"), folder / WEIGHTS)
    k = torch_files.to_integer(state.pop("k"), f"k in {folder / WEIGHTS}")
    fields.equal(trainer, "k", k, path)
    weights = torch_files.to_arrays(state, folder / WEIGHTS)
    params = {
        "w_enc": weights["encoder.weight"].T,
        "b_enc": weights["encoder.bias"],
        "w_dec": weights["decoder.weight"].T,
        "b_dec": weights["b_dec"],
    }
    sae = TopKSAE(params, k, rule="relu", center_input=True)
    return rewriting.undo(sae, config, path)


def load_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata given to `save`, or the whole config of a folder that others wrote.

    Raises:
      ValueError: if the config is missing or damaged.
    """
    path = Path(folder) / CONFIG
    return rewriting.noted_metadata(files.read_json(path), path)
