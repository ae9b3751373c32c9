"""Parts of the training losses of one SAE on one batch."""

import chex
import jax
import jax.numpy as jnp


def mse(x_hat: jax.Array, x: jax.Array) -> jax.Array:
    """Mean over all elements of (x_hat - x)^2, both `[b, D]`."""
    chex.assert_rank([x_hat, x], 2)
    chex.assert_equal_shape([x_hat, x])
    return jnp.mean(jnp.square(x_hat - x))


def squared_error(x_hat: jax.Array, x: jax.Array) -> jax.Array:
    """Mean over the samples of |x_hat - x|^2, both `[b, D]`."""
    chex.assert_equal_shape([x_hat, x])
    return jnp.mean(jnp.sum(jnp.square(x_hat - x), axis=1))


def mean_squared_deviation(x: jax.Array) -> jax.Array:
    """Mean over all elements of the squared deviation of `[b, D]` from the batch mean `[D]`."""
    return jnp.mean(jnp.square(x - jnp.mean(x, axis=0, keepdims=True)))


def row_norms(w: jax.Array) -> jax.Array:
    """Norm of each row of `[F, D]`, `[F]`; at a row of zeros with a gradient of zero."""
    squares = jnp.sum(jnp.square(w), axis=1)
    zero = squares == 0.0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))
