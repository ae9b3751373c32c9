"""From the configs of a group to what its program is given as numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Hyperparameters
from sae_jax.configs import SAEConfig, TrainConfig

_INTEGERS = (
    "d_sae",
    "k",
    "aux_k",
    "dead_after",
    "sparsity_warmup_steps",
    "warmup_steps",
    "decay_steps",
    "k_anneal_steps",
)
# All but what is not a field of a config by itself; numbers are float32 unless they count.
_DTYPES = (
    {
        name: np.float32
        for name in Hyperparameters._fields
        if name not in ("prefix_sizes", "num_steps")
    }
    | dict.fromkeys(_INTEGERS, np.int32)
    | {"seed": np.uint32}
)


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

    columns: dict[str, Any] = {
        name: np.array([getattr(config, name) or 0 for config in configs], dtype)
        for name, dtype in _DTYPES.items()
    }
    num_steps = train_config.epochs * -(-num_samples // batch_size)
    columns["prefix_sizes"] = np.array([config.prefix_sizes for config in configs], np.int32)
    columns["num_steps"] = np.full(len(configs), num_steps, np.int32)
    return Hyperparameters(**columns)
