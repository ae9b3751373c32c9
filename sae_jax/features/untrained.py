"""Members as they were drawn, before their first step: what training has to beat."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sae_jax.architectures.base import SAE
from sae_jax.architectures.functional import initial
from sae_jax.architectures.registry import architecture_of
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.sweep.hyperparameters import hyperparameters


def untrained(configs: Sequence[SAEConfig], d_in: int) -> list[SAE]:
    """The SAE of each config before training, from the same seed.

    Thresholds and what else starts in the samples' units are those of samples of unit scale, and
    `b_dec` starts at zero where a config starts it at a statistic of the samples: the directions
    of latents depend on neither.

    Args:
      configs: the members.
      d_in: width D of their samples.
    """
    saes = []
    for config in configs:
        of_group = hyperparameters([config], TrainConfig(), num_samples=1, d_in=d_in)
        hyper = jax.tree.map(lambda column: column[0], of_group)
        center = jnp.zeros(d_in, jnp.float32)
        params, kept = initial(config.template, hyper, center, d_in, config.d_sae)
        architecture = architecture_of(config)
        arrays = architecture.of_true_size(jax.device_get(params | kept), config.d_sae)
        saes.append(architecture.from_params(arrays, config))
    return saes
