"""Training losses of one SAE on one batch."""

import chex
import jax
import jax.numpy as jnp


def mse(x_hat: jax.Array, x: jax.Array) -> jax.Array:
    """Mean over all elements of (x_hat - x)^2, both `[b, D]`."""
    chex.assert_rank([x_hat, x], 2)
    chex.assert_equal_shape([x_hat, x])
    return jnp.mean(jnp.square(x_hat - x))
