"""Matrix products whose precision is what its name says, on every device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from sae_jax.ops import native
from sae_jax.ops.tuning import TILES_MIN_SIZE

ComputeDtype = Literal["float32", "tf32", "bfloat16"]
"""How a product is computed; sums and results are float32 in every case.

`"float32"`: nothing is rounded, where XLA's own default is TF32 on recent NVIDIA GPUs and
bfloat16 on TPUs. `"tf32"`: float32 operands, whose products take TF32 (10 bits of mantissa)
on GPUs that have it, three bfloat16 products (some 16 bits) on TPUs and in training on CPUs with
AMX, and float32 elsewhere. `"bfloat16"`: operands are rounded to bfloat16.
"""

COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("float32", "tf32", "bfloat16")

# Named for each product, so that `jax_default_matmul_precision` has no say.
PRECISION = {
    "float32": lax.Precision.HIGHEST,
    "tf32": lax.Precision.HIGH,
    "bfloat16": lax.Precision.DEFAULT,
}

# How many numbers of bfloat16 make up one of an operand where a CPU has tiles of them. Three have
# the 24 bits of float32.
_NUM_PARTS = {"float32": 3, "tf32": 2, "bfloat16": 1}

_are_divided = ContextVar("_are_divided", default=False)


@contextmanager
def operands_divided(are_divided: bool) -> Iterator[None]:
    """Says of products that are traced inside whether devices share their operands.

    XLA then has to see what is multiplied, and has nothing but its own products.
    """
    token = _are_divided.set(are_divided)
    try:
        yield
    finally:
        _are_divided.reset(token)


def operand_dtype(dtype: ComputeDtype) -> jnp.dtype:
    """The dtype of the operands of products."""
    return jnp.dtype("bfloat16" if dtype == "bfloat16" else "float32")


def matmul(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`a @ b` with operands rounded to `dtype` and sums in float32.

    Args:
      a: `[..., n]`.
      b: `[n, p]` or `[n]`.
      dtype: how the product is computed.

    Returns:
      float32, `[..., p]` or `[...]`.
    """
    operands = operand_dtype(dtype)
    return jnp.dot(
        a.astype(operands),
        b.astype(operands),
        precision=PRECISION[dtype],
        preferred_element_type=jnp.float32,
    )


def matmul_with_rows(a: jax.Array, rows: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`a @ rows.T` with operands rounded to `dtype` and sums in float32; has every derivative.

    Args:
      a: `[..., n]`.
      rows: `[p, n]`.
      dtype: how the product is computed.

    Returns:
      float32, `[..., p]`.
    """
    if operand_dtype(dtype) == jnp.float32:
        return matmul(a, rows.T, dtype)

    def on_cpu(a: jax.Array, rows: jax.Array) -> jax.Array:
        # XLA's CPU backend has no bfloat16 product with a transpose folded into it.
        a, rows = (
            operand.astype(operand_dtype(dtype)).astype(jnp.float32) for operand in (a, rows)
        )
        return matmul(a, rows.T, "float32")

    def elsewhere(a: jax.Array, rows: jax.Array) -> jax.Array:
        return matmul(a, rows.T, dtype)

    return lax.platform_dependent(a, rows, cpu=on_cpu, default=elsewhere)


def product(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`a @ b` of two matrices as training computes it, without a derivative; see `matmul`."""
    return _on_tiles(partial(matmul, dtype=dtype), a, b, dtype)


def product_with_rows(a: jax.Array, rows: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`a @ rows.T` of two matrices as training computes it, without a derivative."""

    def on_cpu(a: jax.Array, rows: jax.Array) -> jax.Array:
        # A copy costs its size, and many times that of wide rows a power of two apart, which
        # evict each other from the cache. Copying `a` instead of `rows` takes one of the result
        # too, in float32 and dearer by the byte.
        if len(a) * (rows.shape[1] + 4 * len(rows)) > len(rows) * rows.shape[1]:
            return matmul(a, transposed(rows), dtype)
        return lax.optimization_barrier(matmul(rows, transposed(a), dtype)).T

    def compiled(a: jax.Array, rows: jax.Array) -> jax.Array:
        a, rows = a.astype(operand_dtype(dtype)), rows.astype(operand_dtype(dtype))
        if rows.dtype == jnp.float32:
            return matmul(a, rows.T, dtype)
        return lax.platform_dependent(
            a, rows, cpu=on_cpu, default=lambda a, rows: matmul(a, rows.T, dtype)
        )

    return _on_tiles(compiled, a, rows, dtype, right_transposed=True)


def product_of_columns(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`a.T @ b` of two matrices as training computes it, without a derivative."""

    def compiled(a: jax.Array, b: jax.Array) -> jax.Array:
        a = a.astype(operand_dtype(dtype))
        # A float32 product reads a transpose in place; copying pays only for the smaller operand.
        in_place = a.dtype == jnp.float32 and a.shape[1] > b.shape[1]
        return matmul(a.T if in_place else transposed(a), b, dtype)

    return _on_tiles(compiled, a, b, dtype, left_transposed=True)


def _on_tiles(
    compiled: Callable[[jax.Array, jax.Array], jax.Array],
    a: jax.Array,
    b: jax.Array,
    dtype: ComputeDtype,
    *,
    left_transposed: bool = False,
    right_transposed: bool = False,
) -> jax.Array:
    """A product on a CPU's tiles of bfloat16, or what XLA compiles where there are none."""
    num_rows, num_columns = a.shape[left_transposed], b.shape[not right_transposed]
    is_small = min(num_rows, num_columns) < TILES_MIN_SIZE[dtype]
    if is_small or _are_divided.get() or not native.has_tiles():
        return compiled(a, b)
    on_tiles = partial(
        native.matmul,
        num_parts=_NUM_PARTS[dtype],
        left_transposed=left_transposed,
        right_transposed=right_transposed,
    )
    return native.on_cpu(on_tiles, compiled, a.astype(jnp.float32), b.astype(jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def training_matmul(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`matmul` of two matrices, with the gradient that hardware runs fastest.

    Its derivative has the same precision: the operands of both products in it are rounded
    as well. There is no forward mode.
    """
    return product(a, b, dtype)


def _forward(
    a: jax.Array, b: jax.Array, dtype: ComputeDtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(a, b, dtype), (a, b)


def _backward(
    dtype: ComputeDtype, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    return product_with_rows(gradient, b, dtype), product_of_columns(a, gradient, dtype)


training_matmul.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def training_matmul_transposed(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`a @ b.T` with the gradient that hardware runs fastest; as `training_matmul`."""
    return product_with_rows(a, b, dtype)


def _forward_transposed(
    a: jax.Array, b: jax.Array, dtype: ComputeDtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product_with_rows(a, b, dtype), (a, b)


def _backward_transposed(
    dtype: ComputeDtype, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    return product(gradient, b, dtype), product_of_columns(gradient, a, dtype)


training_matmul_transposed.defvjp(_forward_transposed, _backward_transposed)


def settled(z: jax.Array) -> jax.Array:
    """The same latents, computed before what follows.

    They come from a product that may be transposed. Where only elementwise functions lie between,
    XLA's CPU backend folds that into the next product, and has no such one in bfloat16.
    """
    return lax.optimization_barrier(z)


def transposed(a: jax.Array) -> jax.Array:
    """`a.T` of a matrix, laid out in memory as such where that is faster.

    XLA's CPU backend folds a transpose into the product that follows, and then widens
    bfloat16 operands to float32, or fails. The flat copy made here is not folded.
    """

    def copied(a: jax.Array) -> jax.Array:
        return lax.optimization_barrier(a.T.reshape(-1)).reshape(a.shape[::-1])

    return lax.platform_dependent(a, cpu=copied, default=lambda a: a.T)
