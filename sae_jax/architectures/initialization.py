"""The parameters of an SAE before its first step."""

import math

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
    enc_key, dec_key, b_enc_key, b_dec_key = jax.random.split(key, 4)
    enc_bound = 1.0 / math.sqrt(d_in)
    dec_bound = jax.lax.rsqrt(jnp.asarray(d_sae, jnp.float32))

    def draw(key: jax.Array, bound: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, minval=-1.0, maxval=1.0) * bound

    def draw_latents(key: jax.Array, bound: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        latents = jnp.arange(width, dtype=jnp.int32)
        keys = jax.vmap(lambda latent: jax.random.fold_in(key, latent))(latents)
        rows = jax.vmap(lambda key: draw(key, bound, shape))(keys)
        real = latents < d_sae
        return jnp.where(real.reshape((-1,) + (1,) * len(shape)), rows, 0.0)

    w_dec = draw_latents(dec_key, dec_bound, (d_out,))
    norms = jnp.linalg.norm(w_dec, axis=1, keepdims=True)
    w_dec = w_dec / jnp.where(norms == 0.0, 1.0, norms) * decoder_norm
    return {
        "w_enc": w_dec.T if tied else draw_latents(enc_key, enc_bound, (d_in,)).T,
        "b_enc": jnp.zeros(width, jnp.float32) if tied else draw_latents(b_enc_key, enc_bound, ()),
        "w_dec": w_dec,
        "b_dec": draw(b_dec_key, dec_bound, (d_out,)) if b_dec is None else b_dec,
    }
