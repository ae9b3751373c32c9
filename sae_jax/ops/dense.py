"""The reconstruction of an SAE by products of all latents, and its derivative.

Arrays of latents lead with the latent, `[F, b]`. Both weights' gradients then read their operands
as they lie in memory, bfloat16 products mostly need copies of samples and not of dictionaries, and
a CPU counts latents down columns.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sae_jax.ops.activation import Activation
from sae_jax.ops.matmul import (
    ComputeDtype,
    product,
    product_of_columns,
    product_with_rows,
)

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def reconstruct(
    w_enc_t: jax.Array,
    b_enc: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    x: jax.Array,
    k: jax.Array,
    activation: Activation,
    dtype: ComputeDtype,
) -> jax.Array:
    """Reconstructions `[b, D]` of samples.

    As a module computes them, but with a faster gradient and no forward mode.

    Args:
      w_enc_t: the encoder transposed, `[F, D]`, so that a latent is a row of it.
      b_enc, w_dec, b_dec: `[F]`, `[F, D]`, `[D]`.
      x: `[b, D]`.
      k: hyperparameter of the activation; may be traced.
      activation: how latents come from pre-activations.
      dtype: how products are computed.
    """
    return _forward(w_enc_t, b_enc, w_dec, b_dec, x, k, activation, dtype)[0]


def _forward(
    w_enc_t: jax.Array,
    b_enc: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    x: jax.Array,
    k: jax.Array,
    activation: Activation,
    dtype: ComputeDtype,
) -> tuple[jax.Array, Residuals]:
    z, mask = encode(w_enc_t, b_enc, x, k, activation, dtype)
    return decode(z, w_dec, dtype) + b_dec[None, :], (w_enc_t, w_dec, x, z, mask)


def _backward(
    activation: Activation, dtype: ComputeDtype, residuals: Residuals, gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    w_enc_t, w_dec, x, z, mask = residuals
    z_grad = latent_gradients(w_dec, mask, gradient, dtype)
    return (
        product(z_grad, x, dtype),
        jnp.sum(z_grad, axis=1),
        product(z, gradient, dtype),
        jnp.sum(gradient, axis=0),
        # Not computed where samples are constants, as nothing else needs it.
        decode(z_grad, w_enc_t, dtype),
        None,
    )


reconstruct.defvjp(_forward, _backward)


def encode(
    w_enc_t: jax.Array,
    b_enc: jax.Array,
    x: jax.Array,
    k: jax.Array,
    activation: Activation,
    dtype: ComputeDtype,
) -> tuple[jax.Array, jax.Array]:
    """Latents `[F, b]`, and which of them have a gradient, as what they come from then has."""
    pre = product_with_rows(w_enc_t, x, dtype) + b_enc[:, None]
    value, slope = jax.jvp(activation.value, (pre,), (jnp.ones_like(pre),))
    kept = activation.keep(value, k, 0)
    return jnp.where(kept, value, 0.0), kept & (slope != 0)


def decode(z: jax.Array, rows: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`z.T @ rows`, `[b, D]`, of latents `[F, b]` and a dictionary's rows `[F, D]`."""
    return product_of_columns(z, rows, dtype)


def latent_gradients(
    w_dec: jax.Array, mask: jax.Array, gradient: jax.Array, dtype: ComputeDtype
) -> jax.Array:
    """Gradients of latents, `[F, b]`, from those of reconstructions, `[b, D]`."""
    return jnp.where(mask, product_with_rows(w_dec, gradient, dtype), 0.0)
