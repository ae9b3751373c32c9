"""The project's own layout: one folder with `sae.safetensors` and `config.json`.

It holds everything that an SAE is, under the names that the modules use, and any JSON
metadata beside it. It needs neither the sweep that the SAE comes from nor Orbax.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.architectures.base import PARAM_NAMES, SAE, JumpReLUSAE, TopKSAE
from sae_jax.formats import fields, files, rewriting

WEIGHTS = "sae.safetensors"
CONFIG = "config.json"

_FORMAT = "sae_jax"
_VERSION = 1
_SHARED_KEYS = ("format", "version", "architecture", "center_input", "normalize_input", "metadata")


def save(sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes an SAE to a folder, which is created where absent.

    Args:
      sae: a `TopKSAE` or a `JumpReLUSAE`.
      folder: where the two files go; neither may exist.
      metadata: JSON values to keep beside the SAE, such as its training config and metrics.

    Returns:
      The folder.

    Raises:
      ValueError: if a file exists, the metadata is not JSON, or the SAE is of another class.
    """
    folder = Path(folder)
    config: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    arrays = rewriting.host_params(sae)
    if isinstance(sae, TopKSAE):
        config |= {"architecture": "topk", "k": sae.k, "rule": sae.rule}
    elif isinstance(sae, JumpReLUSAE):
        config |= {"architecture": "jumprelu"}
        arrays["threshold"] = np.asarray(sae.threshold[...], np.float32)
    else:
        raise ValueError(f"cannot save a {type(sae).__name__}; allowed are TopKSAE and JumpReLUSAE")
    config |= {"center_input": sae.center_input, "normalize_input": sae.normalize_input}
    config["metadata"] = dict(metadata or {})

    files.absent(folder / WEIGHTS)
    files.write_json(config, folder / CONFIG)
    files.write_safetensors(arrays, folder / WEIGHTS)
    return folder


def load(folder: str | Path) -> TopKSAE | JumpReLUSAE:
    """The SAE in a folder that `save` wrote.

    Raises:
      ValueError: if a file is missing or damaged, or holds something else than expected.
    """
    folder = Path(folder)
    config = read_config(folder)
    arrays = files.read_safetensors(folder / WEIGHTS)
    options = {name: config[name] for name in ("center_input", "normalize_input")}
    if config["architecture"] == "jumprelu":
        files.check_names(arrays, (*PARAM_NAMES, "threshold"), folder / WEIGHTS)
        threshold = arrays.pop("threshold")
        return JumpReLUSAE(arrays, threshold, **options)
    files.check_names(arrays, PARAM_NAMES, folder / WEIGHTS)
    return TopKSAE(arrays, config["k"], rule=config["rule"], **options)


def load_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata given to `save`.

    Raises:
      ValueError: if the config is missing or damaged.
    """
    return read_config(Path(folder))["metadata"]


def read_config(folder: Path) -> dict[str, Any]:
    """The checked config of an SAE, without its weights.

    Raises:
      ValueError: if it is missing or damaged.
    """
    path = folder / CONFIG
    config = files.read_json(path)
    fields.choice(config, "format", (_FORMAT,), path)
    fields.choice(config, "version", (_VERSION,), path)
    keys: tuple[str, ...] = _SHARED_KEYS
    if fields.choice(config, "architecture", ("topk", "jumprelu"), path) == "topk":
        keys += ("k", "rule")
        fields.integer(config, "k", path, minimum=1)
        fields.choice(config, "rule", ("abs", "relu"), path)
    files.check_names(config, keys, path)
    fields.boolean(config, "center_input", path)
    fields.boolean(config, "normalize_input", path)
    fields.mapping(config, "metadata", path)
    return config
