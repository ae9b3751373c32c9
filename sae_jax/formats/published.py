"""The published experiment's own checkpoint: one file `pos{p}_layer{l}_d{F}_k{K}.pt`.

It is the format of `TopKAutoencoder` in the public repository GusSand/CoT_Exploration
(2025), a top-k of magnitudes that keeps the sign, centers nothing and normalizes nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_jax.architectures.base import SAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import fields, files, kinds, names, rewriting, torch_files

MARK = "model_state_dict"
"""An entry that no other format's PyTorch file has."""

_NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_OPTIONAL = ("metrics", "training_history", "metadata")


def save(sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes an SAE as the experiment's own scripts do.

    Args:
      sae: a `TopKSAE` of the published rule.
      folder: where the file goes; it may hold other SAEs.
      metadata: plain values, among them the integers `layer` and `position`, which the
        file's name calls for; `metrics` and `training_history` go where the scripts look.

    Returns:
      The file.

    Raises:
      ValueError: if the file exists, `layer` or `position` is missing, or the format
        cannot hold the SAE.
    """
    if not isinstance(sae, TopKSAE) or sae.rule != "abs":
        raise ValueError("the published format holds only a TopKSAE whose rule is 'abs'")
    rewriting.check_plain(sae, "published")
    if sae.center_input:
        raise ValueError("the published format cannot hold an SAE whose center_input is True")
    folder = Path(folder)
    rest = files.plain(metadata or {}, folder)
    layer = fields.integer(rest, "layer", folder, minimum=0)
    position = fields.integer(rest, "position", folder, minimum=0)
    del rest["layer"], rest["position"]

    content = {
        MARK: names.to_theirs(kinds.arrays_of(sae), _NAMES),
        "config": {
            "input_dim": sae.d_in,
            "latent_dim": sae.d_sae,
            "k": sae.k,
            "position": position,
            "layer": layer,
        },
        "metrics": rest.pop("metrics", {}),
        "training_history": rest.pop("training_history", {}),
        "metadata": rest,
    }
    path = folder / f"pos{position}_layer{layer}_d{sae.d_sae}_k{sae.k}.pt"
    torch_files.write(content, path)
    return path


def load(path: str | Path) -> TopKSAE:
    """Loads the SAE in one of the experiment's checkpoints.

    Raises:
      ValueError: if the file is missing or damaged, or holds something else than expected.
    """
    path = Path(path)
    checkpoint = torch_files.read(path)
    config = fields.mapping(checkpoint, "config", path)
    state = fields.mapping(checkpoint, MARK, path)
    files.check_names(state, _NAMES, path)
    params = names.to_ours(torch_files.to_arrays(state, path))
    sae = TopKSAE(params, fields.integer(config, "k", path, minimum=1))
    fields.equal(config, "input_dim", sae.d_in, path)
    fields.equal(config, "latent_dim", sae.d_sae, path)
    return sae


def load_metadata(path: str | Path) -> dict[str, Any]:
    """Returns `layer`, `position`, `metrics`, `training_history` and what else `save` was given.

    Raises:
      ValueError: if the file is missing or damaged, or holds other than plain values.
    """
    path = Path(path)
    checkpoint = torch_files.read(path)
    config = fields.mapping(checkpoint, "config", path)
    found = {name: fields.integer(config, name, path, minimum=0) for name in ("layer", "position")}
    parts = {name: checkpoint[name] for name in _OPTIONAL if checkpoint.get(name)}
    extra = fields.mapping({"metadata": {}} | parts, "metadata", path)
    parts.pop("metadata", None)
    return files.plain(extra | parts | found, path)
