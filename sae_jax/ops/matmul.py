"""Matrix products whose precision is what its name says, on every device."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

ComputeDtype = Literal["float32", "tf32", "bfloat16"]
"""How a product is computed; sums and results are float32 in every case.

`"float32"`: nothing is rounded, where XLA's own default is TF32 on recent NVIDIA GPUs and
bfloat16 on TPUs. `"tf32"`: float32 operands, whose products take TF32 (10 bits of mantissa)
on GPUs that have it, three bfloat16 passes (some 16 bits) on TPUs, and float32 elsewhere,
as on CPUs. `"bfloat16"`: operands are rounded to bfloat16.
"""

COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("float32", "tf32", "bfloat16")

# Named for each product, so that `jax_default_matmul_precision` has no say.
PRECISION = {
    "float32": lax.Precision.HIGHEST,
    "tf32": lax.Precision.HIGH,
    "bfloat16": lax.Precision.DEFAULT,
}


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


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def training_matmul(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`matmul` of two matrices, with the gradient that hardware runs fastest.

    Its derivative has the same precision: the operands of both products in it are rounded
    as well. There is no forward mode.
    """
    return matmul(a, b, dtype)


def _forward(
    a: jax.Array, b: jax.Array, dtype: ComputeDtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    a, b = a.astype(operand_dtype(dtype)), b.astype(operand_dtype(dtype))
    return matmul(a, b, dtype), (a, b)


def _backward(
    dtype: ComputeDtype, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    gradient = gradient.astype(a.dtype)
    # A float32 product reads a transpose in place; copying pays only for the smaller operand.
    in_place = a.dtype == jnp.float32 and a.shape[1] > gradient.shape[1]
    a_t = a.T if in_place else transposed(a)
    return matmul_transposed(gradient, b, dtype), matmul(a_t, gradient, dtype)


training_matmul.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def training_matmul_transposed(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`matmul_transposed` with the gradient that hardware runs fastest; as `training_matmul`."""
    return matmul_transposed(a, b, dtype)


def _forward_transposed(
    a: jax.Array, b: jax.Array, dtype: ComputeDtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    a, b = a.astype(operand_dtype(dtype)), b.astype(operand_dtype(dtype))
    return matmul_transposed(a, b, dtype), (a, b)


def _backward_transposed(
    dtype: ComputeDtype, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    gradient = gradient.astype(a.dtype)
    return matmul(gradient, b, dtype), matmul(transposed(gradient), a, dtype)


training_matmul_transposed.defvjp(_forward_transposed, _backward_transposed)


def matmul_transposed(a: jax.Array, b: jax.Array, dtype: ComputeDtype) -> jax.Array:
    """`a @ b.T` of two matrices, with operands rounded to `dtype` and sums in float32."""
    a, b = a.astype(operand_dtype(dtype)), b.astype(operand_dtype(dtype))
    if b.dtype == jnp.float32:
        return matmul(a, b.T, dtype)

    def on_cpu(a: jax.Array, b: jax.Array) -> jax.Array:
        # A copy costs its size, and many times that of wide rows a power of two apart, which
        # evict each other from the cache. Copying `a` instead of `b` takes one of the result
        # too, in float32 and dearer by the byte.
        if len(a) * (b.shape[1] + 4 * len(b)) > len(b) * b.shape[1]:
            return matmul(a, transposed(b), dtype)
        return lax.optimization_barrier(matmul(b, transposed(a), dtype)).T

    return lax.platform_dependent(a, b, cpu=on_cpu, default=lambda a, b: matmul(a, b.T, dtype))


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
