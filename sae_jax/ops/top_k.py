"""Exact top-k selection whose k is a traced value."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from sae_jax.ops.matmul import matmul
from sae_jax.ops.tuning import TOP_K_BLOCK

# Up to which float32 counts one by one.
_MAX_FLOAT_COUNT = 2**24


def top_k_mask(values: jax.Array, k: jax.Array | int) -> jax.Array:
    """Marks the k largest entries of each row; among equal entries the lower index wins.

    `lax.top_k` needs a static k and sorts. This bisects on the bits of each row's
    k-th largest value instead: the cost does not depend on k, a new k does not
    recompile, and every operation is a comparison and a count, which any backend
    fuses and vectorizes.

    Args:
      values: non-negative floats, shape `[..., F]`.
      k: entries to mark in each row, `1 <= k <= F`; an integer or a traced scalar.

    Returns:
      A boolean mask of the shape of `values` with exactly k true entries in each row.
    """
    # The choice of latents is a constant to every derivative.
    values = lax.stop_gradient(values).astype(jnp.float32)
    k = jnp.asarray(k, jnp.int32)
    # Bits of non-negative floats, read as signed integers, are in the floats' order.
    bits = lax.bitcast_convert_type(values, jnp.int32)
    threshold = _kth_largest(bits, k)
    above = bits > threshold
    tied = bits == threshold
    surplus = _count(above | tied) - k
    cutoff = _last_index_kept(tied, surplus)
    return above | (tied & (lax.broadcasted_iota(jnp.int32, bits.shape, bits.ndim - 1) <= cutoff))


def signed_top_k_mask(values: jax.Array, allowed: jax.Array, k: jax.Array | int) -> jax.Array:
    """Marks the k largest entries of each row that are allowed; values may be negative.

    Values that differ in the last bit alone may be taken for equal, in which case the lower
    index wins.

    Args:
      values: floats, `[..., F]`.
      allowed: bool, of a shape that broadcasts to that of `values`.
      k: entries to mark, at least 1; where fewer are allowed, those are marked.

    Returns:
      A boolean mask of the shape of `values`.
    """
    bits = lax.bitcast_convert_type(lax.stop_gradient(values).astype(jnp.float32), jnp.int32)
    # In the floats' order as signed integers: what a negative float's bits count runs down.
    ordered = jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)
    # Halved and moved above zero, the bits of a non-negative float again.
    positive = (ordered >> 1) + jnp.int32(2**30)
    ranks = lax.bitcast_convert_type(jnp.where(allowed, positive, 0), jnp.float32)
    return top_k_mask(ranks, k) & allowed


def top_k_indices(values: jax.Array, k: int) -> jax.Array:
    """Indices of the k largest entries of each row, in order; ties go to the lower index.

    As `lax.top_k`, but in two stages where rows are long: an entry among the k largest
    lies in one of the k blocks of largest maxima, so only those are searched.

    Args:
      values: non-negative, `[b, F]`.
      k: at most F.

    Returns:
      int32, `[b, k]`.
    """
    num_rows, width = values.shape
    num_blocks = -(-width // TOP_K_BLOCK)
    if num_blocks < 2 * k:
        return lax.top_k(values, k)[1]
    padding = num_blocks * TOP_K_BLOCK - width
    blocks = jnp.pad(values, ((0, 0), (0, padding)), constant_values=-1.0)
    blocks = blocks.reshape(num_rows, num_blocks, TOP_K_BLOCK)
    # Sorted, so that among candidates, too, an earlier position is a lower index.
    chosen = jnp.sort(lax.top_k(jnp.max(blocks, axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=1)
    position = lax.top_k(candidates.reshape(num_rows, -1), k)[1]
    block = jnp.take_along_axis(chosen, position // TOP_K_BLOCK, axis=1)
    return block * TOP_K_BLOCK + position % TOP_K_BLOCK


def _count(mask: jax.Array) -> jax.Array:
    """True entries of each row, int32 `[..., 1]`.

    XLA's CPU backend multiplies by ones in less time than it sums.
    """
    if mask.shape[-1] > _MAX_FLOAT_COUNT:
        return jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)

    def times_ones(ones: jax.Array) -> jax.Array:
        return matmul(ones, jnp.ones((mask.shape[-1], 1), jnp.float32), "float32")

    def total(ones: jax.Array) -> jax.Array:
        return jnp.sum(ones, axis=-1, keepdims=True)

    count = lax.platform_dependent(mask.astype(jnp.float32), cpu=times_ones, default=total)
    return count.astype(jnp.int32)


def _kth_largest(bits: jax.Array, k: jax.Array | int) -> jax.Array:
    """The largest t, `[..., 1]`, with at least k entries of each row `>= t`.

    Or, where it stops early, any t with exactly k of them, which marks the same entries. An
    accelerator would wait for the host in every round to hear whether all rows are done.
    """
    early, late = (partial(_bisect, stop_early=stop_early) for stop_early in (True, False))
    return lax.platform_dependent(bits, k, cpu=early, default=late)


def _bisect(bits: jax.Array, k: jax.Array | int, *, stop_early: bool) -> jax.Array:
    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        i, _, exact = state
        return (i < 31) & ~jnp.all(exact) if stop_early else i < 31

    def set_bit(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        i, t, exact = state
        candidate = t | (jnp.int32(1) << (30 - i))
        count = _count(bits >= candidate)
        t = jnp.where((count >= k) & ~exact, candidate, t)
        return i + 1, t, exact | (count == k)

    zeros = jnp.zeros_like(bits[..., :1])
    return lax.while_loop(unfinished, set_bit, (jnp.int32(0), zeros, zeros > 0))[1]


def _last_index_kept(tied: jax.Array, surplus: jax.Array) -> jax.Array:
    """The index, `[..., 1]`, past which each row's last `surplus` tied entries lie.

    Rows seldom tie, so this is a bisection that ends at once when no row does.
    """
    num_latents = tied.shape[-1]
    index = lax.broadcasted_iota(jnp.int32, tied.shape, tied.ndim - 1)
    low = jnp.zeros_like(surplus)
    high = jnp.where(surplus > 0, num_latents - 1, 0)

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        enough = _count(tied & (index > middle)) <= surplus
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low, _ = lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, (low, high))
    return jnp.where(surplus > 0, low, num_latents - 1)
