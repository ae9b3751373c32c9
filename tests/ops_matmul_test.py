import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sae_jax.ops import native
from sae_jax.ops.matmul import operands_divided, training_matmul, transposed


@pytest.fixture(params=["tiles", "XLA"], autouse=True)
def _products(request, monkeypatch):
    """Products on a CPU's tiles, and as XLA compiles them."""
    if request.param == "XLA":
        monkeypatch.setattr(native, "has_tiles", lambda: False)
    elif not native.has_tiles():
        pytest.skip("the processor has no AMX, or the loops in C++ are not built")


def operands(*shape_a, width=6, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape_a).astype(np.float32)
    b = rng.normal(size=(shape_a[-1], width)).astype(np.float32)
    gradient = rng.normal(size=(*shape_a[:-1], width)).astype(np.float32)
    return a, b, gradient


def rounded(array):
    """The array with bfloat16's 8 significant bits, in float64."""
    return np.asarray(array, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def value_and_gradients(a, b, gradient, dtype):
    value, pull = jax.vjp(lambda a, b: training_matmul(a, b, dtype), a, b)
    return value, *pull(jnp.asarray(gradient))


@pytest.mark.parametrize("shape", [(5, 7), (5, 4), (1, 7)])
def test_float32_training_equals_autodiff_of_the_plain_product(shape):
    a, b, gradient = operands(*shape)
    value, pull = jax.vjp(lambda a, b: a @ b, a, b)
    expected = (value, *pull(jnp.asarray(gradient)))
    for got, want in zip(value_and_gradients(a, b, gradient, "float32"), expected, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


# On tiles only the larger ones are computed.
@pytest.mark.parametrize("shape", [(5, 7, 6), (256, 300, 270)])
def test_float32_gradients_match_float64_by_hand(shape):
    *shape_a, width = shape
    a, b, gradient = operands(*shape_a, width=width)
    value, grad_a, grad_b = value_and_gradients(a, b, gradient, "float32")
    tolerance = {"rtol": 1e-5, "atol": 2e-5}
    np.testing.assert_allclose(value, a.astype(np.float64) @ b, **tolerance)
    np.testing.assert_allclose(grad_a, gradient.astype(np.float64) @ b.T, **tolerance)
    np.testing.assert_allclose(grad_b, a.astype(np.float64).T @ gradient, **tolerance)


# Few rows beside a wide weight, and the other way round, take different transposes.
@pytest.mark.parametrize(("rows", "width"), [(64, 6), (3, 40)])
def test_bfloat16_rounds_operands_of_all_three_products_and_sums_in_float32(rows, width):
    a, b, gradient = operands(rows, 300, width=width)
    value, grad_a, grad_b = value_and_gradients(a, b, gradient, "bfloat16")
    # Sums of up to 300 products: a bfloat16 sum would be off by some 1e-2 of its size.
    tolerance = {"rtol": 1e-5, "atol": 2e-5}
    np.testing.assert_allclose(value, rounded(a) @ rounded(b), **tolerance)
    np.testing.assert_allclose(grad_a, rounded(gradient) @ rounded(b).T, **tolerance)
    np.testing.assert_allclose(grad_b, rounded(a).T @ rounded(gradient), **tolerance)
    assert value.dtype == grad_a.dtype == grad_b.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [6, 40])
def test_lifted_over_members_equals_one_by_one(dtype, width):
    singles = [operands(5, 7, width=width, seed=seed) for seed in range(3)]
    stacked = [np.stack(arrays) for arrays in zip(*singles, strict=True)]
    lifted = jax.jit(jax.vmap(lambda a, b, g: value_and_gradients(a, b, g, dtype)))(*stacked)
    for member, arrays in enumerate(singles):
        for got, want in zip(lifted, value_and_gradients(*arrays, dtype), strict=True):
            np.testing.assert_allclose(got[member], want, rtol=1e-6, atol=1e-6)


def test_one_batch_shared_by_all_members():
    a, _, _ = operands(5, 7)
    weights = np.random.default_rng(1).normal(size=(3, 7, 4)).astype(np.float32)
    got = jax.vmap(lambda b: training_matmul(a, b, "float32"))(jnp.asarray(weights))
    np.testing.assert_allclose(got, np.einsum("bd,mdf->mbf", a, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transposed(dtype):
    a = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), dtype)
    np.testing.assert_array_equal(jax.jit(transposed)(a), np.asarray(a).T)


def test_operands_that_devices_share_are_left_to_xla():
    def lowered(are_divided):
        a, b, gradient = operands(256, 256, width=256)
        with operands_divided(are_divided):
            function = jax.jit(lambda *arguments: value_and_gradients(*arguments, "float32"))
            return function.lower(a, b, gradient).as_text()

    assert "sae_jax_matmul" not in lowered(True)
    assert ("sae_jax_matmul" in lowered(False)) == native.has_tiles()
