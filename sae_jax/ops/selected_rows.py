"""The reconstruction of a top-k SAE from its selected latents alone, and its derivative.

Equal to the dense products up to the order of sums. Where d_sae is much larger than k
only the encoder's product touches all latents: decoding reads, and the weights'
gradients add, no more rows than were selected.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sae_jax.ops import rows
from sae_jax.ops.activation import Activation
from sae_jax.ops.matmul import ComputeDtype, product_with_rows

Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def reconstruct(
    w_enc_t: jax.Array,
    b_enc: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    x: jax.Array,
    k: jax.Array,
    activation: Activation,
    dtype: ComputeDtype,
    k_max: int,
) -> jax.Array:
    """Reconstructions `[b, D]` of samples by the k latents of largest magnitude.

    Args:
      w_enc_t: the encoder transposed, `[F, D]`, so that a latent is a row of it.
      b_enc, w_dec, b_dec: `[F]`, `[F, D]`, `[D]`.
      x: `[b, D]`.
      k: latents kept; may be traced.
      activation: how latents come from pre-activations: `ABS_TOP_K` or `TOP_K`.
      dtype: how products are computed; loops in C++, which gather rows as fast, do so in float32.
      k_max: at least k, at most F.
    """
    return _forward(w_enc_t, b_enc, w_dec, b_dec, x, k, activation, dtype, k_max)[0]


def _forward(
    w_enc_t: jax.Array,
    b_enc: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    x: jax.Array,
    k: jax.Array,
    activation: Activation,
    dtype: ComputeDtype,
    k_max: int,
) -> tuple[jax.Array, Residuals]:
    num_latents = len(w_dec)
    product = product_with_rows(w_enc_t, x, dtype)
    indices, chosen = rows.largest(product, b_enc, k, k_max, activation)
    value, slope = jax.jvp(activation.value, (chosen,), (jnp.ones_like(chosen),))
    kept = (indices < num_latents) & (slope != 0)
    values, indices = jnp.where(kept, value, 0.0), jnp.where(kept, indices, num_latents)
    x_hat = rows.sum_of_rows(values, indices, w_dec) + b_dec[None, :]
    return x_hat, (w_enc_t, w_dec, x, values, indices)


def _backward(
    activation: Activation,
    dtype: ComputeDtype,
    k_max: int,
    residuals: Residuals,
    gradient: jax.Array,
) -> tuple[jax.Array | None, ...]:
    w_enc_t, w_dec, x, values, indices = residuals
    value_grads = rows.products_with_rows(gradient, indices, w_dec, dtype)
    sums = partial(rows.sums_over_samples, num_latents=len(w_dec), dtype=dtype)
    return (
        *sums(value_grads, indices, x),
        sums(values, indices, gradient)[0],
        jnp.sum(gradient, axis=0),
        # Not computed where samples are constants, as nothing else needs it.
        rows.sum_of_rows(value_grads, indices, w_enc_t),
        None,
    )


reconstruct.defvjp(_forward, _backward)
