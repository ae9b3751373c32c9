"""The loops in C++ against NumPy, and where they are missing or of another version."""

import importlib.util
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_jax.ops import native

COMPILER = shutil.which("c++")
needs_loops = pytest.mark.skipif(
    not native.is_built(), reason="the loops in C++ are not built: there was no compiler for them"
)

needs_tiles = pytest.mark.skipif(
    not native.has_tiles(), reason="the processor has no AMX, or the loops in C++ are not built"
)

# Few samples for many rows, which are read in place; many for few, of which panels are copied.
SIZES = st.sampled_from([(5, 3, 300, 200), (64, 9, 40, 7), (40, 17, 33, 130), (9, 1, 1, 1)])


@st.composite
def selections(draw):
    """Values and indices `[b, k]`, some of them none's, rows `[F, D]` and samples `[b, D]`."""
    b, k, num_rows, width = draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    indices = rng.integers(0, num_rows + draw(st.integers(0, num_rows)), (b, k))
    indices = np.minimum(indices, num_rows).astype(np.int32)
    values = np.where(indices < num_rows, rng.normal(size=(b, k)), 0)
    rows, x = rng.normal(size=(num_rows, width)), rng.normal(size=(b, width))
    return values.astype(np.float32), indices, rows.astype(np.float32), x.astype(np.float32)


def with_none(rows):
    """Rows in float64, and one of zeros for the index that is none's."""
    return np.concatenate([rows, np.zeros_like(rows[:1])]).astype(np.float64)


@needs_loops
@settings(max_examples=40, deadline=None)
@given(selections())
def test_sums_and_products_of_rows(selection):
    values, indices, rows, x = selection
    selected = with_none(rows)[indices]
    found = jax.jit(native.sum_of_rows)(values, indices, rows)
    np.testing.assert_allclose(found, np.einsum("bk,bkd->bd", values, selected), atol=2e-5)
    found = jax.jit(native.products_with_rows)(x, indices, rows)
    np.testing.assert_allclose(found, np.einsum("bd,bkd->bk", x, selected), atol=1e-4)

    num_latents = len(rows)
    sums_of = jax.jit(partial(native.sums_over_samples, num_latents=num_latents))
    sums, totals = sums_of(values, indices, x)
    selects = (indices[..., None] == np.arange(num_latents)) * values[..., None].astype(np.float64)
    np.testing.assert_allclose(sums, np.einsum("bkf,bd->fd", selects, x), atol=5e-5)
    np.testing.assert_allclose(totals, selects.sum((0, 1)), atol=1e-5)


@needs_tiles
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.sampled_from([1, 15, 32, 33, 70])] * 2, st.integers(1, 1500)),
    num_parts=st.integers(1, 3),
    transposed=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**16),
)
def test_products_on_tiles_are_as_exact_as_their_parts(shape, num_parts, transposed, seed):
    num_rows, num_columns, depth = shape
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(num_rows, depth)).astype(np.float32)
    b = rng.normal(size=(depth, num_columns)).astype(np.float32)
    found = native.matmul(
        a.T if transposed[0] else a,
        b.T if transposed[1] else b,
        num_parts,
        left_transposed=transposed[0],
        right_transposed=transposed[1],
    )
    if num_parts == 1:
        a, b = (operand.astype(ml_dtypes.bfloat16) for operand in (a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    # Two parts have 16 bits; float32, in which up to 1,500 products are added up, has 24.
    unit = 2.0 ** (-16 if num_parts == 2 else -20)
    np.testing.assert_array_less(np.abs(found - a @ b), unit * (np.abs(a) @ np.abs(b)) + 1e-30)


@needs_tiles
def test_products_on_tiles_of_nothing_and_of_what_is_no_number():
    assert native.matmul(jnp.zeros((3, 0)), jnp.zeros((0, 4)), 3).tolist() == [[0.0] * 4] * 3
    not_a_number = native.matmul(jnp.array([[jnp.nan, 1.0]]), jnp.ones((2, 1)), 3)
    infinite = native.matmul(jnp.array([[jnp.inf, 1.0]]), jnp.ones((2, 1)), 3)
    assert not np.isfinite([not_a_number, infinite]).any()


@needs_tiles
def test_three_parts_lose_no_more_than_a_product_in_float32():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(64, 576)), rng.normal(size=(576, 64))
    a, b = a.astype(np.float32), b.astype(np.float32)
    exact = a.astype(np.float64) @ b
    assert np.std(native.matmul(a, b, 3) - exact) < 1.5 * np.std(a @ b - exact)


@needs_loops
@settings(max_examples=80, deadline=None)
@given(
    num_samples=st.sampled_from([1, 5, 17, 130]),
    num_latents=st.sampled_from([1, 7, 16, 33, 256, 513, 3000]),
    num_values=st.integers(1, 5000),
    positive=st.booleans(),
    data=st.data(),
)
def test_the_largest_are_those_of_a_stable_sort(
    num_samples, num_latents, num_values, positive, data
):
    k_max = data.draw(st.integers(1, num_latents))
    k = data.draw(st.integers(1, k_max))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    # With few distinct values, zero among them, samples are full of ties.
    product = (rng.integers(-num_values, num_values, (num_latents, num_samples)) / 7).astype("f")
    bias = (rng.integers(-2, 2, num_latents) / 7).astype(np.float32)
    indices, values = jax.jit(partial(native.largest_latents, k_max=k_max, positive=positive))(
        product, bias, jnp.int32(k)
    )
    pre = (product + bias[:, None]).T
    rank = np.maximum(pre, 0) if positive else np.abs(pre)
    expected = np.sort(np.argsort(-rank, axis=1, kind="stable")[:, :k], axis=1)
    np.testing.assert_array_equal(indices[:, :k], expected)
    np.testing.assert_array_equal(indices[:, k:], num_latents)
    np.testing.assert_array_equal(values[:, :k], np.take_along_axis(pre, expected, axis=1))
    np.testing.assert_array_equal(values[:, k:], 0)


@needs_loops
@pytest.mark.parametrize("positive", [False, True])
def test_values_that_are_no_numbers_are_the_largest(positive):
    largest = partial(native.largest_latents, positive=positive)
    product = jnp.array([1.0, jnp.nan, 0.0, jnp.inf, 2.0], jnp.float32)[:, None]
    assert largest(product, jnp.zeros(5), jnp.int32(3), 4)[0].tolist() == [[1, 3, 4, 5]]
    with_sign = jax.lax.bitcast_convert_type(jnp.full((40, 1), 0xFFC00000, jnp.uint32), jnp.float32)
    assert largest(with_sign, jnp.zeros(40), jnp.int32(3), 3)[0].tolist() == [[0, 1, 2]]


@needs_loops
def test_threads_do_not_change_a_bit():
    rng = np.random.default_rng(0)
    values, x = rng.normal(size=(200, 12)), rng.normal(size=(200, 300))
    indices = np.sort(rng.integers(0, 150, (200, 12)), axis=1).astype(np.int32)
    rows = rng.normal(size=(150, 300))
    values, x, rows = (a.astype(np.float32) for a in (values, x, rows))

    def everything(values, indices, x, rows):
        return (
            native.largest_latents(rows, x[0, : len(rows)], jnp.int32(5), 5, positive=False),
            native.threefry_bits(jnp.arange(2, dtype=jnp.uint32), (70, 3)),
            native.sum_of_rows(values, indices, rows),
            native.products_with_rows(x, indices, rows),
            native.sums_over_samples(values, indices, x, len(rows)),
            native.sum_of_rows(values[:1], indices[:1], rows),
            native.matmul(x, rows, 3, right_transposed=True) if native.has_tiles() else (),
            native.adam(jnp.full(8, 0.5), [x], [x + 1], [x * 2], [x * x]),
        )

    arguments = values, indices, x, rows
    alone = jax.jit(everything, compiler_options={"xla_cpu_multi_thread_eigen": False})
    for one, many in zip(
        jax.tree.leaves(alone(*arguments)),
        jax.tree.leaves(jax.jit(everything)(*arguments)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, many)


@needs_loops
def test_members_side_by_side_are_each_member_alone():
    rng = np.random.default_rng(1)
    values, rows = rng.normal(size=(3, 20, 4)), rng.normal(size=(3, 9, 33))
    values, rows = values.astype(np.float32), rows.astype(np.float32)
    indices = rng.integers(0, 9, (3, 20, 4)).astype(np.int32)
    together = jax.vmap(native.sum_of_rows)(values, indices, rows)
    for i in range(3):
        alone = native.sum_of_rows(values[i], indices[i], rows[i])
        np.testing.assert_array_equal(together[i], alone)


def test_a_package_without_loops_says_nothing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert native.is_built.__wrapped__() is False


def test_a_library_that_is_none_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "_native.so").write_text("no library")
    spec = SimpleNamespace(origin=str(tmp_path / "_native.so"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.warns(UserWarning, match="_native.so.*no-build-isolation"):
        assert native.is_built.__wrapped__() is False


def test_a_library_without_a_function_is_left_alone(monkeypatch):
    spec = importlib.util.find_spec("_ctypes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.warns(UserWarning, match="undefined symbol.*no-build-isolation"):
        assert native.is_built.__wrapped__() is False


@needs_loops
def test_a_library_for_another_jaxlib_is_left_alone(monkeypatch, tmp_path):
    header = tmp_path / "xla/ffi/api/c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 0\n\n#define XLA_FFI_API_MINOR 12345\n")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    with pytest.warns(UserWarning, match=r"is \(0, \d\), that of jaxlib \(0, 12345\)"):
        assert native.is_built.__wrapped__() is False
    header.write_text("of another kind")
    with pytest.warns(UserWarning, match="no-build-isolation"):
        assert native.is_built.__wrapped__() is False


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_they_are_built_where_there_is_a_compiler():
    assert native.is_built()
