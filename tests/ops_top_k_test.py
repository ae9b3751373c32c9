from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sae_jax.architectures.initialization import init_params
from sae_jax.architectures.topk import TopKSAE
from sae_jax.ops.top_k import (
    _bisect,
    _by_digits,
    _count,
    _last_kept,
    _last_kept_by_digits,
    batch_top_k_mask,
    signed_top_k_mask,
    top_k_mask,
)

NUM_ROWS, NUM_LATENTS = 3, 13
SMALLEST_SUBNORMAL = np.float32(1e-45)
SMALLEST_NORMAL = np.finfo(np.float32).tiny
# Few distinct values, so that most rows tie, at the edges of the format.
AWKWARD = [
    0.0,
    SMALLEST_SUBNORMAL,
    2 * SMALLEST_SUBNORMAL,
    SMALLEST_NORMAL,
    1.0,
    np.nextafter(np.float32(1.0), np.float32(2.0)),
    np.finfo(np.float32).max,
    np.inf,
]

jitted_mask = jax.jit(top_k_mask, static_argnames="axis")
both_axes = pytest.mark.parametrize("axis", [-1, 0], ids=["rows", "columns"])


def along(axis, values):
    """The rows of `values`, laid out so that they run along an axis."""
    return values if axis == -1 else values.T


def oracle(values, k):
    """Marks the first k of a stable descending sort: of equals, the lower index."""
    order = np.argsort(-np.asarray(values, np.float64), axis=-1, kind="stable")
    mask = np.zeros(values.shape, bool)
    np.put_along_axis(mask, order[..., :k], True, axis=-1)
    return mask


def rows(elements):
    return hnp.arrays(np.float32, (NUM_ROWS, NUM_LATENTS), elements=elements)


@both_axes
@settings(max_examples=300, deadline=None)
@given(rows(st.sampled_from(AWKWARD)), st.integers(1, NUM_LATENTS))
def test_ties_and_extremes(axis, values, k):
    got = along(axis, jitted_mask(along(axis, values), k, axis))
    np.testing.assert_array_equal(got, oracle(values, k))


@pytest.mark.parametrize(
    "search", [_bisect, partial(_by_digits, num_bits=31)], ids=["cpu", "accelerators"]
)
@given(rows(st.sampled_from(AWKWARD)), st.integers(1, NUM_LATENTS))
@settings(max_examples=50, deadline=None)
def test_both_searches_find_thresholds_of_the_k_largest(search, values, k):
    bits = values.view(np.int32)
    threshold = jax.jit(search)(bits, k)
    kth_largest = -np.sort(-bits, axis=-1)[:, k - 1 : k]
    np.testing.assert_array_equal(bits >= threshold, bits >= kth_largest)


@pytest.mark.parametrize("search", [_last_kept, _last_kept_by_digits], ids=["cpu", "accelerators"])
@both_axes
@given(rows(st.booleans()).map(lambda rows: rows > 0), st.data())
@settings(max_examples=50, deadline=None)
def test_both_searches_end_before_the_surplus(axis, search, tied, data):
    surplus = np.array([[data.draw(st.integers(0, row.sum()))] for row in tied], np.int32)
    last = jax.jit(search, static_argnames="axis")(
        along(axis, tied), along(axis, surplus), axis=axis
    )
    kept = tied & (np.arange(NUM_LATENTS) <= along(axis, np.asarray(last)))
    for row, kept_row, (num_lost,) in zip(tied, kept, surplus, strict=True):
        indices = np.flatnonzero(row)
        np.testing.assert_array_equal(np.flatnonzero(kept_row), indices[: len(indices) - num_lost])


@settings(max_examples=300, deadline=None)
@given(rows(st.sampled_from(AWKWARD)), st.integers(1, NUM_ROWS * NUM_LATENTS))
def test_ties_and_extremes_of_a_batch(values, k):
    expected = oracle(values.reshape(1, -1), k).reshape(values.shape)
    np.testing.assert_array_equal(jax.jit(batch_top_k_mask)(values, k), expected)


@settings(max_examples=100, deadline=None)
@given(
    rows(st.floats(0, width=32, allow_nan=False, allow_infinity=True)),
    st.integers(1, NUM_LATENTS),
)
def test_any_floats(values, k):
    np.testing.assert_array_equal(jitted_mask(values, k), oracle(values, k))


@pytest.mark.parametrize("num_latents", [1, 2, 512, 513, 2048])
def test_widths(num_latents):
    values = np.abs(np.random.default_rng(0).normal(size=(8, num_latents))).astype(np.float32)
    for k in {1, (num_latents + 1) // 2, num_latents}:
        np.testing.assert_array_equal(jitted_mask(values, k), oracle(values, k))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_floats_of_16_bits(dtype):
    values = jnp.asarray(np.random.default_rng(0).random((4, 9)), dtype)
    np.testing.assert_array_equal(jitted_mask(values, 3), oracle(values, 3))


def test_each_row_of_a_higher_rank():
    values = np.random.default_rng(0).integers(0, 4, size=(2, 3, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(jitted_mask(values, 3), oracle(values, 3))


def test_k_of_each_member_under_vmap():
    values = np.random.default_rng(0).integers(0, 6, size=(4, 5, 16)).astype(np.float32)
    k = jnp.array([1, 5, 16, 8])
    got = jax.jit(jax.vmap(top_k_mask))(values, k)
    for member, member_k in enumerate([1, 5, 16, 8]):
        np.testing.assert_array_equal(got[member], oracle(values[member], member_k))


def test_a_new_k_does_not_recompile():
    traced = chex.assert_max_traces(top_k_mask, n=1)
    mask = jax.jit(traced)
    values = jnp.ones((2, 9))
    for k in range(1, 10):
        assert (np.asarray(mask(values, k)).sum(axis=-1) == k).all()
    chex.clear_trace_counter()


def test_exactly_k_are_marked_where_values_are_nan():
    values = np.array([[np.nan, 1.0, np.nan, np.nan], [np.nan] * 4], np.float32)
    np.testing.assert_array_equal(np.asarray(jitted_mask(values, 2)).sum(axis=-1), [2, 2])


@both_axes
@pytest.mark.parametrize("num_latents", [2**15 - 1, 2**15, 2**24 + 2])
def test_more_latents_than_short_integers_or_float32_count(num_latents, axis):
    mask = along(axis, jnp.ones((2, num_latents), bool).at[0, 0].set(False))
    counts = jax.jit(_count, static_argnames="axis")(mask, axis=axis)
    assert along(axis, counts).tolist() == [[num_latents - 1], [num_latents]]


@both_axes
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_cpu_counts_by_products_and_asks_whether_all_rows_are_done(platform, axis):
    arguments = jax.ShapeDtypeStruct((2, 9), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    exported = jax.export.export(jitted_mask, platforms=(platform,))(*arguments, axis=axis)
    program = exported.mlir_module()
    assert ("stablehlo.dot_general" in program) == (platform == "cpu" and axis == -1)
    assert ("stablehlo.and across" in program) == (platform == "cpu")
    assert ("stablehlo.or across" in program) == (platform == "cpu")


def test_64_bit_types_by_default_change_nothing():
    values = np.random.default_rng(0).integers(0, 4, size=(3, 13)).astype(np.float32)
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            got = jax.jit(top_k_mask)(jnp.asarray(values, dtype), 5)
            np.testing.assert_array_equal(got, oracle(values, 5))
            got = jax.jit(batch_top_k_mask)(jnp.asarray(values, dtype), 5)
            np.testing.assert_array_equal(np.ravel(got), oracle(values.ravel(), 5))


def test_a_batch_of_more_entries_than_int32_counts_is_refused():
    values = jax.ShapeDtypeStruct((2**11, 2**20), jnp.float32)
    with pytest.raises(ValueError, match=r"\(2048, 1048576\) entries; allowed are fewer than 2"):
        jax.eval_shape(batch_top_k_mask, values, 5)


def test_it_is_a_constant_to_every_derivative():
    values = jnp.asarray(np.random.default_rng(0).random((3, 13)), jnp.float32)

    def kept(values):
        return jnp.sum(jnp.where(top_k_mask(values, 4), values**2, 0.0))

    expected = np.where(oracle(values, 4), 2 * np.asarray(values), 0)
    np.testing.assert_allclose(jax.grad(kept)(values), expected)
    np.testing.assert_allclose(jax.jacfwd(kept)(values), expected)
    np.testing.assert_allclose(jax.linearize(kept, values)[1](values), (expected * values).sum())
    diagonal = jnp.einsum("ijij->ij", jax.hessian(kept)(values))
    np.testing.assert_allclose(diagonal, 2 * oracle(values, 4))


jitted_signed_mask = jax.jit(signed_top_k_mask)
# No two of them differ in the last bit alone.
SIGNED = [-np.inf, -3e38, -2.0, -1.0, -1e-30, 0.0, 1e-30, 1.0, 2.0, 3e38, np.inf]


def signed_oracle(values, allowed, k):
    """Marks the first k of a stable descending sort of what is allowed."""
    allowed = np.broadcast_to(allowed, values.shape)
    mask = np.zeros(values.shape, bool)
    for row, may, marked in zip(values, allowed, mask, strict=True):
        order = np.argsort(-row.astype(np.float64), kind="stable")
        marked[order[may[order]][:k]] = True
    return mask


@settings(max_examples=200, deadline=None)
@given(
    rows(st.sampled_from(SIGNED)),
    hnp.arrays(bool, (NUM_ROWS, NUM_LATENTS)),
    st.integers(1, NUM_LATENTS),
)
def test_signed_values_of_which_some_are_allowed(values, allowed, k):
    """Where fewer than k are allowed, those are marked: perhaps none."""
    expected = signed_oracle(values, allowed, k)
    np.testing.assert_array_equal(jitted_signed_mask(values, allowed, k), expected)


@settings(max_examples=100, deadline=None)
@given(
    rows(st.floats(width=32, allow_nan=False)),
    hnp.arrays(bool, (1, NUM_LATENTS)),
    st.integers(1, NUM_LATENTS),
)
def test_any_signed_floats(values, allowed, k):
    mask = np.asarray(jitted_signed_mask(values, allowed, k))
    assert not (mask & ~allowed).any()
    np.testing.assert_array_equal(mask.sum(axis=1), min(k, allowed.sum()))
    # Up to a last bit, none that is left out is larger.
    for row, marked in zip(values, mask, strict=True):
        left = row[allowed[0] & ~marked]
        if len(left) and marked.any():
            with np.errstate(over="ignore"):  # The largest number's neighbor is infinite.
                above = np.nextafter(row[marked].min(), np.float32(np.inf))
            assert above >= left.max()


def test_the_signed_mask_of_each_member_under_vmap_and_its_derivative():
    values = np.random.default_rng(1).normal(size=(3, 5, 16)).astype(np.float32)
    allowed = np.random.default_rng(2).random((3, 1, 16)) < 0.5
    k = np.array([1, 4, 16])
    got = jax.jit(jax.vmap(signed_top_k_mask))(values, allowed, k)
    for i in range(3):
        np.testing.assert_array_equal(got[i], signed_oracle(values[i], allowed[i], k[i]))

    def kept(values):
        return jnp.sum(jnp.where(signed_top_k_mask(values, allowed[1], 4), values**2, 0.0))

    expected = np.where(signed_oracle(values[1], allowed[1], 4), 2 * values[1], 0.0)
    np.testing.assert_allclose(jax.grad(kept)(values[1]), expected)


@partial(jax.jit, static_argnums=1)
def latents_of(pre, k):
    params = init_params(jax.random.key(0), 1, NUM_LATENTS, NUM_LATENTS)
    return TopKSAE(params, k).activate(pre)


@settings(max_examples=200, deadline=None)
@given(
    rows(st.sampled_from([-0.0, 0.0, -1.0, 1.0, -2.0, 2.0, -SMALLEST_SUBNORMAL, np.inf, -np.inf])),
    st.sampled_from([1, 4, NUM_LATENTS]),
)
def test_latents_keep_the_sign_of_the_largest_magnitudes(pre, k):
    z = np.asarray(latents_of(pre, k))
    np.testing.assert_array_equal(z, np.where(oracle(np.abs(pre), k), pre, 0.0))
