"""Fields of a config that an architecture has no use for, and those that it fills in."""

import dataclasses
from typing import Any

from sae_jax.configs import SAEConfig


def refuse_unused(config: SAEConfig, *names: str) -> None:
    """Refuses fields that would make members differ in the table and not in fact.

    Args:
      config: the config.
      names: fields that its architecture, with its preset, does not use.

    Raises:
      ValueError: if one of them is not at its default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            beside = "" if config.preset is None else f" with preset {config.preset!r}"
            raise ValueError(
                f"{name} is {getattr(config, name)!r}; allowed is {defaults[name]!r} for"
                f" {config.architecture}{beside}, which does not use it"
            )


def filled(config: SAEConfig, **defaults: Any) -> SAEConfig:
    """The config with those of its fields that are `None` at other defaults."""
    missing: dict[str, Any] = {
        name: value for name, value in defaults.items() if getattr(config, name) is None
    }
    return dataclasses.replace(config, **missing)
