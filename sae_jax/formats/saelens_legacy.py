"""Puts configs of SAELens before version 6 into the words of version 6.

They keep an SAE's settings and its origin in one flat object, name the activation function
apart from the architecture, and leave out what was not thought of yet.
"""

import re
from pathlib import Path
from typing import Any

from sae_jax.formats import fields

_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
# These fields say how an SAE computes; the rest of a flat config says where it comes from.
_SETTINGS = (
    "architecture",
    "activation_fn",
    "activation_fn_kwargs",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "finetuning_scaling_factor",
    "sae_lens_version",
)


def modernize(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a config as version 6 would have written it, which one of version 6 is already.

    Raises:
      ValueError: if the activation function is neither a ReLU nor a top-k, or a field of
        version 6 is not what it writes.
    """
    metadata = fields.mapping({"metadata": {}} | config, "metadata", path)
    if _is_version_6(metadata.get("sae_lens_version", config.get("sae_lens_version"))):
        return config
    flat = {_RENAMED.get(name, name): value for name, value in config.items()}
    flat = {"architecture": "standard", "activation_fn": "relu"} | flat
    if fields.choice(flat, "activation_fn", ("relu", "topk"), path) == "topk":
        options = fields.mapping(flat, "activation_fn_kwargs", path)
        flat |= {"architecture": "topk", "k": fields.integer(options, "k", path, minimum=1)}
    # The field was true or false at first, then one of several names or null.
    normalization = flat.get("normalize_activations")
    if normalization is None or isinstance(normalization, bool):
        flat["normalize_activations"] = "expected_average_only_in" if normalization else "none"
    known = (*_SETTINGS, "metadata")
    origin = {name: value for name, value in flat.items() if name not in known}
    return flat | {"metadata": origin | metadata}


def _is_version_6(version: Any) -> bool:
    found = re.match(r"\d+", version) if isinstance(version, str) else None
    return found is not None and int(found.group()) >= 6
