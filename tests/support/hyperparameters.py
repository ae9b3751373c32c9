"""Hyperparameters of made-up members, as the step takes them."""

import jax.numpy as jnp

from sae_jax import SAEConfig
from sae_jax.architectures.base import Hyperparameters

TEMPLATE = SAEConfig(1, 1).template


def hyperparameters(*members, **fields):
    """Of members given as (d_sae, k, seed, learning rate), and other fields by name."""
    d_sae, k, seed, learning_rate = zip(*members, strict=True)
    ones = [1] * len(members)
    return Hyperparameters(
        seed=jnp.array(seed, jnp.uint32),
        d_sae=jnp.array(d_sae, jnp.int32),
        k=jnp.array(k, jnp.int32),
        learning_rate=jnp.array(learning_rate, jnp.float32),
        aux_coefficient=jnp.array(fields.get("aux_coefficient", [0.0] * len(ones)), jnp.float32),
        aux_k=jnp.array(fields.get("aux_k", ones), jnp.int32),
        dead_after=jnp.array(fields.get("dead_after", ones), jnp.int32),
    )
