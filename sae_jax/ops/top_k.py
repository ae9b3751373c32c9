"""Exact top-k selection whose k is a traced value."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sae_jax.ops.matmul import matmul
from sae_jax.ops.tuning import TOP_K_BLOCK, TOP_K_DIGIT_BITS

# Up to which float32 counts one by one.
_MAX_FLOAT_COUNT = 2**24
# From which int16 cannot count.
_MAX_SHORT_COUNT = 2**15
# From which int32 cannot count.
_MAX_COUNT = 2**31


def top_k_mask(values: jax.Array, k: jax.Array | int, axis: int = -1) -> jax.Array:
    """Marks the k largest entries along an axis; among equal entries the lower index wins.

    `lax.top_k` needs a static k and sorts. This searches the bits of the k-th largest
    value instead: the cost does not depend on k, a new k does not recompile, and every
    operation is a comparison and a count, which any backend fuses and vectorizes.

    Args:
      values: non-negative floats, F along the axis.
      k: entries to mark along it, `1 <= k <= F`; an integer or a traced scalar.
      axis: the first of two, which a CPU counts in half the time, or the last.

    Returns:
      A boolean mask of the shape of `values` with exactly k true entries along the axis.
    """
    # The choice of latents is a constant to every derivative.
    values = lax.stop_gradient(values).astype(jnp.float32)
    k = jnp.asarray(k, jnp.int32)
    # Bits of non-negative floats, read as signed integers, are in the floats' order.
    bits = lax.bitcast_convert_type(values, jnp.int32)
    count = partial(_count, axis=axis)
    threshold = _kth_largest(bits, k, count)
    above = bits > threshold
    tied = bits == threshold
    return above | _without_last(tied, count(above | tied) - k, axis)


def batch_top_k_mask(values: jax.Array, k: jax.Array | int) -> jax.Array:
    """Marks the k largest entries of a whole batch; among equal ones the lower sample wins, and
    of one sample the lower index.

    As `top_k_mask` of the flattened batch, but rows stay rows: where samples and latents are
    divided among devices, these tell each other counts and no values.

    Args:
      values: non-negative floats, `[b, F]`.
      k: entries to mark, `1 <= k <= b * F`; an integer or a traced scalar.

    Returns:
      A boolean mask `[b, F]` with exactly k true entries.

    Raises:
      ValueError: if the batch has 2^31 entries or more, which int32 cannot count.
    """

    def count_all(mask: jax.Array) -> jax.Array:
        return jnp.sum(_count(mask), axis=0, keepdims=True, dtype=jnp.int32)

    if values.size >= _MAX_COUNT:
        raise ValueError(
            f"the batch has {values.shape} entries; allowed are fewer than 2**31 in all, so take a"
            " smaller batch_size"
        )
    values = lax.stop_gradient(values).astype(jnp.float32)
    k = jnp.asarray(k, jnp.int32)
    bits = lax.bitcast_convert_type(values, jnp.int32)
    threshold = _kth_largest(bits, k, count_all)
    above = bits > threshold
    tied = bits == threshold
    num_tied = _count(tied)
    # Of the surplus, what samples further down do not take up.
    surplus = count_all(above | tied) - k
    down_to_here = jnp.cumsum(num_tied, axis=0, dtype=jnp.int32)
    further_down = down_to_here[-1:] - down_to_here
    return above | _without_last(tied, jnp.clip(surplus - further_down, 0, num_tied))


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


def _count(mask: jax.Array, axis: int = -1) -> jax.Array:
    """True entries along an axis, int32, `[..., 1]` or `[1, ...]`.

    Down columns XLA's CPU backend adds short integers in vectors. Along rows it does not, and a
    product with ones takes less time than a sum.
    """
    num_entries = mask.shape[axis]

    def added(mask: jax.Array, dtype: Any = jnp.int32) -> jax.Array:
        return jnp.sum(mask, axis=axis, keepdims=True, dtype=dtype).astype(jnp.int32)

    def on_cpu(mask: jax.Array) -> jax.Array:
        if axis == 0:
            return added(mask, jnp.int16 if num_entries < _MAX_SHORT_COUNT else jnp.int32)
        if num_entries > _MAX_FLOAT_COUNT:
            return added(mask)
        ones = jnp.ones((num_entries, 1), jnp.float32)
        return matmul(mask.astype(jnp.float32), ones, "float32").astype(jnp.int32)

    return lax.platform_dependent(mask, cpu=on_cpu, default=added)


def _kth_largest(
    bits: jax.Array, k: jax.Array, count: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The largest t with at least k entries `>= t`, of those that are counted together.

    Or, where it stops early, any t with exactly k of them, which marks the same entries.
    """
    return lax.platform_dependent(
        bits,
        k,
        cpu=partial(_bisect, count=count),
        default=partial(_by_digits, num_bits=31, count=count),
    )


def _bisect(
    bits: jax.Array, k: jax.Array, *, count: Callable[[jax.Array], jax.Array] = _count
) -> jax.Array:
    """`_kth_largest` bit by bit, until every count is exact."""

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        i, _, exact = state
        return (i < 31) & ~jnp.all(exact)

    def set_bit(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        i, t, exact = state
        candidate = t | (jnp.int32(1) << (30 - i))
        found = count(bits >= candidate)
        t = jnp.where((found >= k) & ~exact, candidate, t)
        return i + 1, t, exact | (found == k)

    zeros = jnp.zeros_like(count(bits > 0))
    return lax.while_loop(unfinished, set_bit, (jnp.int32(0), zeros, zeros > 0))[1]


def _by_digits(
    numbers: jax.Array,
    k: jax.Array,
    *,
    num_bits: int,
    count: Callable[[jax.Array], jax.Array] = _count,
) -> jax.Array:
    """The largest t with at least k numbers `>= t`, or 0 if there is none, digit by digit.

    A round compares the numbers, int32 from 0 to `2**num_bits - 1`, with all values of a digit in
    one pass. How many rounds there are is known: an accelerator would wait for the host in each
    of them to hear whether it is the last.
    """
    num_rounds = -(-num_bits // TOP_K_DIGIT_BITS)
    count = jax.jit(count)  # It is traced once and not for each candidate.
    # The first digit may reach where a signed integer has its sign.
    numbers = jnp.maximum(numbers, 0).astype(jnp.uint32)

    def set_digit(i: jax.Array, t: jax.Array) -> jax.Array:
        shift = (TOP_K_DIGIT_BITS * (num_rounds - 1 - i)).astype(jnp.uint32)
        candidates = [t | (jnp.uint32(digit) << shift) for digit in range(1, 2**TOP_K_DIGIT_BITS)]
        reached = [count(numbers >= candidate) >= k for candidate in candidates]
        return t | (sum(each.astype(jnp.uint32) for each in reached) << shift)

    zeros = jnp.zeros_like(count(numbers > 0), jnp.uint32)
    return lax.fori_loop(jnp.int32(0), num_rounds, set_digit, zeros).astype(jnp.int32)


def _without_last(tied: jax.Array, surplus: jax.Array, axis: int = -1) -> jax.Array:
    """The mask without the last `surplus`, `[..., 1]` or `[1, ...]`, true entries along an axis.

    Entries seldom tie, so on a CPU this is a bisection that ends at once when none do.
    """
    last = lax.platform_dependent(
        tied,
        surplus,
        cpu=partial(_last_kept, axis=axis),
        default=partial(_last_kept_by_digits, axis=axis),
    )
    return tied & (lax.broadcasted_iota(jnp.int32, tied.shape, axis % tied.ndim) <= last)


def _last_kept(tied: jax.Array, surplus: jax.Array, *, axis: int) -> jax.Array:
    """The index, `[..., 1]` or `[1, ...]`, past which the last `surplus` true entries lie."""
    num_latents = tied.shape[axis]
    index = lax.broadcasted_iota(jnp.int32, tied.shape, axis % tied.ndim)

    def unfinished(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        low, high = state
        return jnp.any(low < high)

    def halve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = state
        middle = (low + high) // 2
        enough = _count(tied & (index > middle), axis) <= surplus
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    high = jnp.full_like(surplus, num_latents - 1)
    low = jnp.where(surplus > 0, -1, high)  # Before the first, where all are surplus.
    return lax.while_loop(unfinished, halve, (low, high))[1]


def _last_kept_by_digits(tied: jax.Array, surplus: jax.Array, *, axis: int) -> jax.Array:
    """`_last_kept` in a known number of rounds: the last true entry but `surplus`."""
    index = lax.broadcasted_iota(jnp.int32, tied.shape, axis % tied.ndim)
    return (
        _by_digits(
            jnp.where(tied, index + 1, 0),
            surplus + 1,
            num_bits=tied.shape[axis].bit_length(),
            count=partial(_count, axis=axis),
        )
        - 1
    )
