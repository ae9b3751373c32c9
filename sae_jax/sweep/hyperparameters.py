"""From the configs of a group to what its program is given as numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Hyperparameters
from sae_jax.configs import SAEConfig, TrainConfig


def hyperparameters(
    configs: Sequence[SAEConfig],
    train_config: TrainConfig,
    num_samples: int,
    d_in: int,
    scale: float = 1.0,
) -> Hyperparameters:
    """What is traced of the members, `[M]` each, with what their configs leave open filled in.

    Args:
      configs: members of one group.
      train_config: for the number of steps.
      num_samples: training samples.
      d_in: width D of a sample.
      scale: root mean square of the normalized samples' deviations from their mean.
    """
    batch_size = train_config.batch_size
    configs = [
        architecture_of(config).fill(config, scale, num_samples, d_in, batch_size)
        for config in configs
    ]

    def floats(values: Iterable[float | None]) -> jax.Array:
        return jnp.array([value or 0.0 for value in values], jnp.float32)

    def integers(values: Iterable[int | None], dtype: Any = jnp.int32) -> jax.Array:
        return jnp.array([value or 0 for value in values], dtype)

    num_steps = train_config.epochs * -(-num_samples // batch_size)
    return Hyperparameters(
        seed=integers((c.seed for c in configs), jnp.uint32),
        d_sae=integers(c.d_sae for c in configs),
        k=integers(c.k for c in configs),
        learning_rate=floats(c.learning_rate for c in configs),
        aux_coefficient=floats(c.aux_coefficient for c in configs),
        aux_k=integers(c.aux_k for c in configs),
        dead_after=integers(c.dead_after for c in configs),
        target_l0=floats(c.target_l0 for c in configs),
        sparsity_coefficient=floats(c.sparsity_coefficient for c in configs),
        sparsity_warmup_steps=integers(c.sparsity_warmup_steps for c in configs),
        bandwidth=floats(c.bandwidth for c in configs),
        threshold_init=floats(c.threshold_init for c in configs),
        prefix_sizes=jnp.array([c.prefix_sizes for c in configs], jnp.int32),
        warmup_steps=integers(c.warmup_steps for c in configs),
        decay_steps=integers(c.decay_steps for c in configs),
        num_steps=integers([num_steps] * len(configs)),
        clip_norm=floats(c.clip_norm for c in configs),
        k_anneal_steps=integers(c.k_anneal_steps for c in configs),
        weight_average=floats(c.weight_average for c in configs),
    )
