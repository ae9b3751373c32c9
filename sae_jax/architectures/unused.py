"""Fields of a config that an architecture has no use for."""

import dataclasses

from sae_jax.configs import SAEConfig

UNUSED_BY_TOP_K = (
    "target_l0",
    "sparsity_coefficient",
    "sparsity_loss",
    "sparsity_warmup_steps",
    "bandwidth",
    "threshold_init",
)
"""What an architecture that keeps k latents does without, beside what it keeps them by."""


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
