"""The project's own layout: one folder with `sae.safetensors` and `config.json`.

It holds everything that an SAE is, under the names that the modules use, and any JSON
metadata beside it. It needs neither the sweep that the SAE comes from nor Orbax.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from sae_jax.architectures.base import PARAM_NAMES, SAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.topk import TopKSAE
from sae_jax.configs import SAEConfig
from sae_jax.formats import fields, files, rewriting

WEIGHTS = "sae.safetensors"
CONFIG = "config.json"

_FORMAT = "sae_jax"
_VERSION = 1
_SHARED_KEYS = ("format", "version", "architecture", "center_input", "normalize_input", "metadata")


def save(
    sae: SAE,
    folder: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    config: SAEConfig | None = None,
) -> Path:
    """Writes an SAE to a folder, which is created where absent.

    Args:
      sae: a `TopKSAE`, a `JumpReLUSAE`, or any SAE with its config.
      folder: where the two files go; neither may exist.
      metadata: JSON values to keep beside the SAE, such as its training config and metrics.
      config: config that the SAE was trained with; its architecture says how to read the SAE.

    Returns:
      The folder.

    Raises:
      ValueError: if a file exists, the metadata is not JSON, or the SAE is of another class.
    """
    folder = Path(folder)
    described: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    arrays = rewriting.host_arrays(sae)
    if isinstance(sae, TopKSAE):
        described |= {"architecture": "topk", "k": sae.k, "rule": sae.rule}
    elif isinstance(sae, JumpReLUSAE):
        described |= {"architecture": "jumprelu"}
    elif config is not None:
        described |= {"architecture": config.architecture, "config": dataclasses.asdict(config)}
        arrays = sae.of_true_size(jax.device_get(sae.arrays()), sae.d_sae)
    else:
        raise ValueError(
            f"cannot save a {type(sae).__name__} without its config; allowed are TopKSAE and"
            " JumpReLUSAE"
        )
    described |= rewriting.input_options(sae) | {"metadata": dict(metadata or {})}
    return files.write_pair(described, folder / CONFIG, arrays, folder / WEIGHTS)


def load(folder: str | Path) -> SAE:
    """Loads the SAE in a folder that `save` wrote.

    Raises:
      ValueError: if a file is missing or damaged, or holds something else than expected.
    """
    folder = Path(folder)
    config = read_config(folder)
    arrays = files.read_arrays(folder / WEIGHTS)
    options = {name: config[name] for name in ("center_input", "normalize_input")}
    if config["architecture"] == "jumprelu":
        files.check_names(arrays, (*PARAM_NAMES, "threshold"), folder / WEIGHTS)
        threshold = arrays.pop("threshold")
        return JumpReLUSAE(arrays, threshold, **options)
    if config["architecture"] != "topk":
        trained_with = SAEConfig(**config["config"])
        return architecture_of(trained_with).from_params(arrays, trained_with)
    files.check_names(arrays, PARAM_NAMES, folder / WEIGHTS)
    return TopKSAE(arrays, config["k"], rule=config["rule"], **options)


def load_metadata(folder: str | Path) -> dict[str, Any]:
    """Returns the metadata given to `save`.

    Raises:
      ValueError: if the config is missing or damaged.
    """
    return read_config(Path(folder))["metadata"]


def read_config(folder: Path) -> dict[str, Any]:
    """Reads and checks the config of an SAE, but not its weights.

    Raises:
      ValueError: if it is missing or damaged.
    """
    path = folder / CONFIG
    config = files.read_json(path)
    fields.choice(config, "format", (_FORMAT,), path)
    fields.choice(config, "version", (_VERSION,), path)
    keys: tuple[str, ...] = _SHARED_KEYS
    # The training config tells all of an architecture that has no keys of its own.
    if "config" in config:
        keys += ("config",)
        fields.mapping(config, "config", path)
    elif fields.choice(config, "architecture", ("topk", "jumprelu"), path) == "topk":
        keys += ("k", "rule")
        fields.integer(config, "k", path, minimum=1)
        fields.choice(config, "rule", ("abs", "relu"), path)
    files.check_names(config, keys, path)
    fields.boolean(config, "center_input", path)
    fields.boolean(config, "normalize_input", path)
    fields.mapping(config, "metadata", path)
    return config


def check_holds(folder: Path, config: SAEConfig) -> None:
    """Checks that a folder holds the SAE of a config, without reading its weights.

    Raises:
      ValueError: if it holds another, or its config is missing or damaged.
    """
    there = read_config(folder)
    if "config" in there:
        same = SAEConfig(**there["config"]) == config
    else:
        rule = {"abs_topk": "abs", "topk": "relu"}.get(config.architecture)
        same = (there.get("rule"), there.get("k")) == (rule, config.k)
    if not same:
        raise ValueError(f"{folder} holds {there}; the sweep says {config}")
