"""Sums and products of the rows that samples select, and which rows those are.

Samples name rows by index, `[b, k]`; F, the number of rows, stands for none. On a CPU the loops of
`sae_jax.ops.native` compute this where they are built.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from sae_jax.ops import native
from sae_jax.ops.activation import TOP_K, Activation
from sae_jax.ops.matmul import PRECISION, ComputeDtype, matmul
from sae_jax.ops.top_k import top_k_indices
from sae_jax.ops.tuning import SELECTED_NUM_SLOTS, SELECTED_SAMPLES_AT_ONCE, SELECTED_UNROLL


def largest(
    product: jax.Array, bias: jax.Array, k: jax.Array, k_max: int, activation: Activation
) -> tuple[jax.Array, jax.Array]:
    """For each sample, the k latents of largest magnitude; ties go to the lower index.

    Args:
      product: samples times the encoder, `[F, b]`.
      bias: `[F]`.
      k: at most `k_max`; may be traced.
      k_max: at most F.
      activation: `ABS_TOP_K` or `TOP_K`.

    Returns:
      Indices, int32, `[b, k_max]`, in any order, and pre-activations, `[b, k_max]`; F and 0 from
      the k-th on.
    """

    def compiled(product: jax.Array, bias: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        pre = (product + bias[:, None]).T
        indices = top_k_indices(jnp.abs(activation.value(pre)), k_max)
        indices = jnp.where(jnp.arange(k_max, dtype=jnp.int32) < k, indices, len(bias))
        return indices, jnp.take_along_axis(pre, indices, axis=1, mode="fill", fill_value=0.0)

    loop = partial(native.largest_latents, k_max=k_max, positive=activation is TOP_K)
    return native.on_cpu(loop, compiled, product, bias, jnp.asarray(k, jnp.int32))


def sum_of_rows(values: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """For each sample, the sum of the rows `[F, D]` that it selects, times their values `[b, k]`.

    The value of an index that is none has to be 0.
    """
    return native.on_cpu(native.sum_of_rows, _sum_of_rows, values, indices, rows)


def products_with_rows(
    x: jax.Array, indices: jax.Array, rows: jax.Array, dtype: ComputeDtype
) -> jax.Array:
    """For each sample `[b, D]`, its inner products with the rows `[F, D]` that it selects,
    `[b, k]`; that with none is 0. `dtype` says what XLA may round, C++ nothing."""
    compiled = partial(_products_with_rows, dtype=dtype)
    return native.on_cpu(native.products_with_rows, compiled, x, indices, rows)


def sums_over_samples(
    values: jax.Array, indices: jax.Array, x: jax.Array, num_latents: int, dtype: ComputeDtype
) -> tuple[jax.Array, jax.Array]:
    """For each latent, the sum of the samples that select it, times their values.

    Args:
      values: `[b, k]`.
      indices: int32, `[b, k]`.
      x: samples, `[b, D]`.
      num_latents: F.
      dtype: what XLA may round, and C++ does not.

    Returns:
      The sums, `[F, D]`, and those of the values alone, `[F]`.
    """
    return native.on_cpu(
        partial(native.sums_over_samples, num_latents=num_latents),
        partial(_sums_over_samples, num_latents=num_latents, dtype=dtype),
        *(values, indices, x),
    )


def _sum_of_rows(values: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    def add(total: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        value, index = column
        return total + value[:, None] * rows[index], None

    zeros = jnp.zeros((len(values), rows.shape[1]), jnp.float32)
    return lax.scan(add, zeros, (values.T, indices.T), unroll=SELECTED_UNROLL)[0]


def _products_with_rows(
    x: jax.Array, indices: jax.Array, rows: jax.Array, dtype: ComputeDtype
) -> jax.Array:
    def products(sample: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, indices = sample
        return jnp.dot(rows[indices], x, precision=PRECISION[dtype])

    found = lax.map(products, (x, indices), batch_size=SELECTED_SAMPLES_AT_ONCE)
    return jnp.where(indices < len(rows), found, 0.0)


def _slots(indices: jax.Array, num_latents: int) -> tuple[jax.Array, jax.Array]:
    """How many earlier samples selected the same latent, `[b, k]`; latents' counts, `[F]`."""

    def count(counts: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        return counts.at[row].add(1, mode="drop"), counts[row]

    counts, slots = lax.scan(count, jnp.zeros(num_latents, jnp.int32), indices)
    return slots, counts


def _sums_over_samples(
    values: jax.Array, indices: jax.Array, x: jax.Array, *, num_latents: int, dtype: ComputeDtype
) -> tuple[jax.Array, jax.Array]:
    """As `zeros.at[indices].add(...)`, which on CPU takes longer than the dense product."""
    slots, counts = _slots(indices, num_latents)
    batch_size, k = indices.shape
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
        z = jnp.zeros((max_crowded + 1, batch_size), jnp.float32)
        z = z.at[late, sample].set(values, mode="drop")
        return gathered(matmul(z, x, dtype)[rank])

    zeros = jnp.zeros((num_latents, x.shape[1]), jnp.float32)
    sums = lax.cond(jnp.any(crowded), with_late_samples, lambda: gathered(zeros))
    return sums, jnp.zeros(num_latents, jnp.float32).at[indices].add(values, mode="drop")
