"""The reconstruction of an SAE by products of all latents, for training."""

import jax

from sae_jax.ops.activation import Activation
from sae_jax.ops.matmul import ComputeDtype, training_matmul, training_matmul_transposed


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

    As a module computes them, but with products whose gradient is faster and which have no
    forward mode.

    Args:
      w_enc_t: the encoder transposed, `[F, D]`, so that a latent is a row of it.
      b_enc, w_dec, b_dec: `[F]`, `[F, D]`, `[D]`.
      x: `[b, D]`.
      k: hyperparameter of the activation; may be traced.
      activation: how latents come from pre-activations.
      dtype: how products are computed.
    """
    pre = training_matmul_transposed(x, w_enc_t, dtype) + b_enc[None, :]
    return training_matmul(activation(pre, k), w_dec, dtype) + b_dec[None, :]
