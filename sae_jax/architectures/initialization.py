"""The parameters of an SAE before its first step."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from sae_jax.architectures.training import Arrays


def init_params(
    key: jax.Array,
    d_in: int,
    d_sae: jax.Array | int,
    width: int,
    *,
    d_out: int | None = None,
    tied: bool = False,
    decoder_norm: float = 1.0,
    b_dec: jax.Array | None = None,
) -> Arrays:
    """Draws the parameters of one SAE, padded with zero latents to a given width.

    As two independent `torch.nn.Linear` layers do, draws weights and biases uniformly
    from (-1/sqrt(fan_in), 1/sqrt(fan_in)), then scales each decoder row to one norm.
    Each latent has a key of its own, so a latent's numbers do not depend on `width`.

    Args:
      key: a PRNG key.
      d_in: width D of an activation vector.
      d_sae: true number of latents; may be traced.
      width: number of latents F allocated, at least `d_sae`.
      d_out: width of what is reconstructed; D if `None`.
      tied: whether the encoder starts as the decoder's transpose, with rows in random
        directions, and `b_enc` at zero.
      decoder_norm: norm of each decoder row.
      b_dec: what `b_dec` starts from, `[d_out]`, if not random numbers.

    Returns:
      float32 parameters; latents from `d_sae` on are zero.
    """
    d_out = d_out or d_in
    keys = jax.random.split(key, 4)
    latents = jnp.arange(width, dtype=jnp.int32)
    # Matrices whose rows are of one size are drawn together, so that less has to be compiled.
    of_each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    enc_keys, dec_keys, b_enc_keys = of_each(keys[:3], latents)
    if d_in == d_out and not tied:
        w_enc_t, w_dec = _uniform(jnp.stack([enc_keys, dec_keys]), d_in)
    else:
        w_enc_t, w_dec = _uniform(enc_keys, d_in), _uniform(dec_keys, d_out)
    enc_bound = 1.0 / math.sqrt(d_in)
    dec_bound = jax.lax.rsqrt(jnp.asarray(d_sae, jnp.float32))
    real = latents < d_sae
    w_dec = jnp.where(real[:, None], w_dec * dec_bound, 0.0)
    norms = jnp.linalg.norm(w_dec, axis=1, keepdims=True)
    w_dec = w_dec / jnp.where(norms == 0.0, 1.0, norms) * decoder_norm
    if tied:
        w_enc, b_enc = w_dec.T, jnp.zeros(width, jnp.float32)
    else:
        w_enc = jnp.where(real[:, None], w_enc_t * enc_bound, 0.0).T
        b_enc = jnp.where(real, _uniform(b_enc_keys) * enc_bound, 0.0)
    if b_dec is None:
        b_dec = _uniform(keys[3], d_out) * dec_bound
    return {"w_enc": w_enc, "b_enc": b_enc, "w_dec": w_dec, "b_dec": b_dec}


def _uniform(keys: jax.Array, *shape: int) -> jax.Array:
    """Uniform numbers in [-1, 1), `[*keys.shape, *shape]`."""
    draw = partial(jax.random.uniform, shape=shape, dtype=jnp.float32, minval=-1.0, maxval=1.0)
    for _ in keys.shape:
        draw = jax.vmap(draw)
    return draw(keys)
