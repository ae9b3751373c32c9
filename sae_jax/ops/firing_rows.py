"""The reconstruction of an SAE from the latents that fire in a batch, and its derivative.

Equal to the dense products up to the order of sums. All latents are encoded; but a latent
that is zero on every sample of the batch adds nothing to a reconstruction and gets no gradient,
and with k = 50 of 512 a quarter to a half of them fire on any of 256 real activations.
The other four products run on the rows of those alone, in one of a few static widths.

Arrays of latents lead with the latent, `[F, b]`, as in `ops.dense`: rows are what is gathered.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from sae_jax.ops.activation import Activation
from sae_jax.ops.dense import decode, encode, latent_gradients
from sae_jax.ops.matmul import ComputeDtype, product
from sae_jax.ops.tuning import FIRING_NUM_WIDTHS, FIRING_WIDTH_MULTIPLE

Residuals = tuple[jax.Array | None, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


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

    Under `jax.vmap` every width would be computed: members have to take turns.

    Args:
      w_enc_t: the encoder transposed, `[F, D]`, so that a latent is a row of it.
      b_enc, w_dec, b_dec: `[F]`, `[F, D]`, `[D]`.
      x: `[b, D]`.
      k: hyperparameter of the activation; may be traced.
      activation: how latents come from pre-activations.
      dtype: how products are computed.
    """
    return _reconstruct(w_enc_t, b_enc, w_dec, b_dec, x, k, activation, dtype)[0]


def _reconstruct(
    w_enc_t: jax.Array,
    b_enc: jax.Array,
    w_dec: jax.Array,
    b_dec: jax.Array,
    x: jax.Array,
    k: jax.Array,
    activation: Activation,
    dtype: ComputeDtype,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Reconstructions; latents, which of them have a gradient, and in what order they lie."""
    z, mask = encode(w_enc_t, b_enc, x, k, activation, dtype)
    # Latents that fire come first; the others fill up the width that is computed, with zeros.
    order = jnp.argsort(~jnp.any(mask, axis=1), stable=True).astype(jnp.int32)

    def decode_firing(width: int, z: jax.Array, w_dec: jax.Array) -> jax.Array:
        return decode(_first_rows(z, order, width), _first_rows(w_dec, order, width), dtype)

    x_hat = _at_least_wide(_num_firing(mask), decode_firing, z, w_dec) + b_dec[None, :]
    return x_hat, (z, mask, order)


def _forward(
    w_enc_t: CustomVJPPrimal,
    b_enc: CustomVJPPrimal,
    w_dec: CustomVJPPrimal,
    b_dec: CustomVJPPrimal,
    x: CustomVJPPrimal,
    k: CustomVJPPrimal,
    activation: Activation,
    dtype: ComputeDtype,
) -> tuple[jax.Array, Residuals]:
    """Of arrays that each come with whether there is a derivative in them."""
    x_hat, found = _reconstruct(
        *(w_enc_t.value, b_enc.value, w_dec.value, b_dec.value, x.value, k.value),
        activation,
        dtype,
    )
    # Where samples are constants their gradient, which alone needs the encoder, is not even traced.
    encoder = w_enc_t.value if x.perturbed else None
    return x_hat, (encoder, w_dec.value, x.value, *found)


def _backward(
    activation: Activation,
    dtype: ComputeDtype,
    residuals: Residuals,
    gradient: jax.Array | SymbolicZero,
) -> tuple[jax.Array | None, ...]:
    if isinstance(gradient, SymbolicZero):
        return (None,) * 6
    w_enc_t, w_dec, x, z, mask, order = residuals
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=order.dtype))

    def gradients_of_firing(width: int, w_dec: jax.Array, mask: jax.Array) -> jax.Array:
        w_dec, mask = (_first_rows(a, order, width) for a in (w_dec, mask))
        return latent_gradients(w_dec, mask, gradient, dtype)

    def gradients(
        width: int, w_dec: jax.Array, z: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        z_grad = gradients_of_firing(width, w_dec, mask)
        z = _first_rows(z, order, width)
        return (
            _at_ranks(product(z_grad, x, dtype), rank),
            _at_ranks(jnp.sum(z_grad, axis=1), rank),
            _at_ranks(product(z, gradient, dtype), rank),
        )

    def sample_gradients(
        width: int, w_enc_t: jax.Array, w_dec: jax.Array, mask: jax.Array
    ) -> jax.Array:
        z_grad = gradients_of_firing(width, w_dec, mask)
        return decode(z_grad, _first_rows(w_enc_t, order, width), dtype)

    num_firing = _num_firing(mask)
    w_enc_grad, b_enc_grad, w_dec_grad = _at_least_wide(num_firing, gradients, w_dec, z, mask)
    x_grad = None
    if w_enc_t is not None:
        x_grad = _at_least_wide(num_firing, sample_gradients, w_enc_t, w_dec, mask)
    return w_enc_grad, b_enc_grad, w_dec_grad, jnp.sum(gradient, axis=0), x_grad, None


reconstruct.defvjp(_forward, _backward, symbolic_zeros=True)


def _num_firing(mask: jax.Array) -> jax.Array:
    """How many latents, of `[F, b]`, fire on some sample."""
    return jnp.sum(jnp.any(mask, axis=1), dtype=jnp.int32)


def _at_least_wide(num_rows: jax.Array, function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`function(width, *arrays)` of the smallest width that holds `num_rows` rows."""
    num_latents = len(arrays[0])
    step = FIRING_WIDTH_MULTIPLE * -(-num_latents // (FIRING_NUM_WIDTHS * FIRING_WIDTH_MULTIPLE))
    widths = [*range(step, num_latents, step), num_latents]
    branches = [partial(function, width) for width in widths]
    return lax.switch(-(-num_rows // step) - 1, branches, *arrays)


def _first_rows(a: jax.Array, order: jax.Array, width: int) -> jax.Array:
    """The first `width` rows of `a[order]`; if those are all, `a` as it lies."""
    return a if width == len(a) else a[order[:width]]


def _at_ranks(rows: jax.Array, rank: jax.Array) -> jax.Array:
    """Undoes `_first_rows`: the row of each latent's rank, or zeros where there is none."""
    if len(rows) == len(rank):
        return rows
    return rows.at[rank].get(mode="fill", fill_value=0.0)
