"""The reconstruction of a top-k SAE from its selected latents alone, and its derivative.

Equal to the dense products up to the order of sums. Where d_sae is much larger than k
only the encoder's product touches all latents: decoding reads, and the weights'
gradients add, no more rows than were selected.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from sae_jax.ops.activation import Activation
from sae_jax.ops.matmul import (
    PRECISION,
    ComputeDtype,
    matmul,
    matmul_transposed,
    operand_dtype,
)
from sae_jax.ops.top_k import top_k_indices
from sae_jax.ops.tuning import SELECTED_NUM_SLOTS, SELECTED_SAMPLES_AT_ONCE, SELECTED_UNROLL

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
      dtype: how products are computed.
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
    pre = matmul_transposed(x, w_enc_t, dtype) + b_enc[None, :]
    indices = top_k_indices(jnp.abs(activation.value(pre)), k_max)
    chosen = jnp.take_along_axis(pre, indices, axis=1)
    value, slope = jax.jvp(activation.value, (chosen,), (jnp.ones_like(chosen),))
    kept = (jnp.arange(k_max, dtype=jnp.int32)[None, :] < k) & (slope != 0)
    values = jnp.where(kept, value, 0.0)
    w_dec = _rounded(w_dec, dtype)
    x_hat = _sum_of_rows(_rounded(values, dtype), indices, w_dec) + b_dec[None, :]
    # A latent that is not kept gets an index of its own, past the end.
    return x_hat, (w_enc_t, w_dec, x, values, jnp.where(kept, indices, len(w_dec)))


def _backward(
    activation: Activation,
    dtype: ComputeDtype,
    k_max: int,
    residuals: Residuals,
    gradient: jax.Array,
) -> tuple[jax.Array | None, ...]:
    w_enc_t, w_dec, x, values, indices = residuals
    num_latents = len(w_dec)
    rounded = _rounded(gradient, dtype)
    value_grads = _products_with_rows(rounded, indices, w_dec, dtype)
    value_grads = jnp.where(indices < num_latents, value_grads, 0.0)
    rounded_value_grads = _rounded(value_grads, dtype)
    sums = partial(_sums_over_samples, indices, *_slots(indices, num_latents), dtype)
    return (
        sums(rounded_value_grads, _rounded(x, dtype)),
        jnp.zeros(num_latents, jnp.float32).at[indices].add(value_grads, mode="drop"),
        sums(_rounded(values, dtype), rounded),
        jnp.sum(gradient, axis=0),
        # Not computed where samples are constants, as nothing else needs it.
        _sum_of_rows(rounded_value_grads, indices, _rounded(w_enc_t, dtype)),
        None,
    )


reconstruct.defvjp(_forward, _backward)


def _rounded(a: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`a` rounded to `dtype` but kept in float32, of which XLA's CPU backend gathers faster."""
    operands = operand_dtype(dtype)
    if operands == jnp.float32:
        return a
    info = jnp.finfo(operands)
    return lax.reduce_precision(a, exponent_bits=info.nexp, mantissa_bits=info.nmant)


def _sum_of_rows(values: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """For each sample, the sum of the rows `[F, D]` that it selects, times their values."""

    def add(total: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        value, index = column
        return total + value[:, None] * rows[index], None

    zeros = jnp.zeros((len(values), rows.shape[1]), jnp.float32)
    return lax.scan(add, zeros, (values.T, indices.T), unroll=SELECTED_UNROLL)[0]


def _products_with_rows(
    x: jax.Array, indices: jax.Array, rows: jax.Array, dtype: ComputeDtype
) -> jax.Array:
    """For each sample, its inner products with the rows that it selects, `[b, k]`."""

    def products(sample: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, indices = sample
        return jnp.dot(rows[indices], x, precision=PRECISION[dtype])

    return lax.map(products, (x, indices), batch_size=SELECTED_SAMPLES_AT_ONCE)


def _slots(indices: jax.Array, num_latents: int) -> tuple[jax.Array, jax.Array]:
    """How many earlier samples selected the same latent, `[b, k]`; latents' counts, `[F]`."""

    def count(counts: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return counts.at[row].add(1, mode="drop"), counts[row]

    counts, slots = lax.scan(count, jnp.zeros(num_latents, jnp.int32), indices)
    return slots, counts


def _sums_over_samples(
    indices: jax.Array,
    slots: jax.Array,
    counts: jax.Array,
    dtype: ComputeDtype,
    values: jax.Array,
    x: jax.Array,
) -> jax.Array:
    """For each latent, the sum of the samples that select it, times their values, `[F, D]`.

    As `zeros.at[indices].add(...)`, which on CPU takes longer than the dense product.
    """
    batch_size, k = indices.shape
    num_latents = len(counts)
    sample = lax.broadcasted_iota(jnp.int32, indices.shape, 0)
    empty = jnp.zeros((SELECTED_NUM_SLOTS, num_latents), jnp.float32)
    slot_values = empty.at[slots, indices].set(values, mode="drop")
    slot_samples = empty.astype(jnp.int32).at[slots, indices].set(sample, mode="drop")

    crowded = counts > SELECTED_NUM_SLOTS
    max_crowded = min(batch_size * k // (SELECTED_NUM_SLOTS + 1), num_latents)
    nowhere = max_crowded + 1
    # Row max_crowded stays zero, for all latents that are not crowded.
    rank = jnp.where(crowded, jnp.cumsum(crowded, dtype=jnp.int32) - 1, max_crowded)

    def gathered(total: jax.Array) -> jax.Array:
        for value, index in zip(slot_values, slot_samples, strict=True):
            total = total + value[:, None] * x[index]
        return total

    def with_late_samples() -> jax.Array:
        late_rank = rank.at[indices].get(mode="fill", fill_value=nowhere)
        late = jnp.where(slots >= SELECTED_NUM_SLOTS, late_rank, nowhere)
        z = jnp.zeros((max_crowded + 1, batch_size), operand_dtype(dtype))
        z = z.at[late, sample].set(values.astype(z.dtype), mode="drop")
        return gathered(matmul(z, x, dtype)[rank])

    zeros = jnp.zeros((num_latents, x.shape[1]), jnp.float32)
    return lax.cond(jnp.any(crowded), with_late_samples, lambda: gathered(zeros))
