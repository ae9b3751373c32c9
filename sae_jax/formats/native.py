"""The project's own layout: one folder with `sae.safetensors` and `config.json`.

It holds everything that an SAE is, under the names that the modules use, and any JSON
metadata beside it. It needs neither the sweep that the SAE comes from nor Orbax.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_jax.architectures.base import PARAM_NAMES, SAE, options_of
from sae_jax.architectures.registry import architecture_of
from sae_jax.configs import SAEConfig
from sae_jax.formats import fields, files, kinds
from sae_jax.formats.kinds import KINDS

WEIGHTS = "sae.safetensors"
CONFIG = "config.json"

_FORMAT = "sae_jax"
_VERSION = 1
_SHARED_KEYS = ("format", "version", "architecture", "center_input", "normalize_input", "metadata")
# Configs name the two rules of a top-k apart, files hold the rule as a setting.
_RULES = {"abs_topk": "abs", "topk": "relu"}


def save(
    sae: SAE,
    folder: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    config: SAEConfig | None = None,
) -> Path:
    """Writes an SAE to a folder, which is created where absent.

    Args:
      sae: an SAE of the project's own architectures, or of any other with its config.
      folder: where the two files go; neither may exist.
      metadata: JSON values to keep beside the SAE, such as its training config and metrics.
      config: config that the SAE was trained with. The file holds it where it names an
        architecture that `sae_jax.register` added, as only that tells how to read the SAE.

    Returns:
      The folder.

    Raises:
      ValueError: if a file exists, the metadata is not JSON, or the SAE is of another class.
    """
    folder = Path(folder)
    if config is not None and _kind_named(config) not in KINDS:
        described: dict[str, Any] = {
            "architecture": config.architecture,
            "config": dataclasses.asdict(config),
        } | kinds.input_options(sae)
    else:
        described = {"architecture": kinds.kind_of(sae)} | kinds.settings_of(sae)
    described |= {"format": _FORMAT, "version": _VERSION, "metadata": dict(metadata or {})}
    return files.write_pair(described, folder / CONFIG, kinds.arrays_of(sae), folder / WEIGHTS)


def load(folder: str | Path) -> SAE:
    """Loads the SAE in a folder that `save` wrote.

    Raises:
      ValueError: if a file is missing or damaged, or holds something else than expected.
    """
    folder = Path(folder)
    config = read_config(folder)
    arrays = files.read_arrays(folder / WEIGHTS)
    if "config" in config:
        trained_with = _trained_with(config, folder / CONFIG)
        return architecture_of(trained_with).from_params(arrays, trained_with)
    name = config["architecture"]
    files.check_names(arrays, (*PARAM_NAMES, *KINDS[name].arrays), folder / WEIGHTS)
    settings = (*KINDS[name].settings, "center_input", "normalize_input")
    return kinds.build(name, arrays, {key: config[key] for key in settings})


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
    own: tuple[str, ...] = ("config",)
    if "config" in config:
        fields.mapping(config, "config", path)
    else:
        own = KINDS[fields.choice(config, "architecture", tuple(KINDS), path)].settings
    files.check_names(config, (*_SHARED_KEYS, *own), path)
    # A batch top-k that was not trained here may not know what it was trained with.
    if "k" in own and (config["architecture"] == "topk" or config["k"] is not None):
        fields.integer(config, "k", path, minimum=1)
    if "rule" in own:
        fields.choice(config, "rule", ("abs", "relu"), path)
    if "prefix_sizes" in own:
        fields.integers(config, "prefix_sizes", path, minimum=1)
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
        same = _trained_with(there, folder / CONFIG) == config
    else:
        expected = options_of(config) | {
            "architecture": _kind_named(config),
            "k": config.k,
            "rule": _RULES.get(config.architecture),
            "prefix_sizes": list(config.prefix_sizes),
        }
        same = all(there[key] == expected[key] for key in there if key in expected)
    if not same:
        raise ValueError(f"{folder} holds {there}; the sweep says {config}")


def array_names(config: SAEConfig) -> tuple[str, ...]:
    """Names of the arrays that a file of a config's SAE holds, as far as they are known here."""
    kind = KINDS.get(_kind_named(config))
    return (*PARAM_NAMES, *(kind.arrays if kind else ()))


def _kind_named(config: SAEConfig) -> str:
    return "topk" if config.architecture in _RULES else config.architecture


def _trained_with(described: Mapping[str, Any], path: Path) -> SAEConfig:
    try:
        return SAEConfig(**described["config"])
    except TypeError as error:  # A field that no config has, or one of another type.
        raise ValueError(f"config in {path} is no config of an SAE: {error}") from error
