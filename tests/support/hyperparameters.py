"""Hyperparameters of made-up members, as the step takes them."""

import jax.numpy as jnp

from sae_jax import SAEConfig
from sae_jax.architectures.training import Hyperparameters

TEMPLATE = SAEConfig(1, 1).template

_INTEGERS = ("aux_k", "dead_after", "sparsity_warmup_steps", "warmup_steps", "decay_steps")


def hyperparameters(*members, **fields):
    """Of members given as (d_sae, k, seed, learning rate), and other fields by name."""
    d_sae, k, seed, learning_rate = zip(*members, strict=True)
    values = {name: jnp.zeros(len(members), jnp.float32) for name in Hyperparameters._fields}
    for name in (*_INTEGERS, "num_steps", "k_anneal_steps"):
        values[name] = jnp.full(len(members), name in ("aux_k", "dead_after"), jnp.int32)
    values |= {name: jnp.asarray(value, values[name].dtype) for name, value in fields.items()}
    return Hyperparameters(
        **values
        | {
            "seed": jnp.array(seed, jnp.uint32),
            "d_sae": jnp.array(d_sae, jnp.int32),
            "k": jnp.array(k, jnp.int32),
            "learning_rate": jnp.array(learning_rate, jnp.float32),
            "prefix_sizes": jnp.zeros((len(members), 0), jnp.int32),
        }
    )
