"""The matrix product of the forward pass, with the gradient that hardware runs fastest."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def dot(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`a @ b` with operands rounded to `dtype` and sums in float32.

    The derivative has the same precision: the operands of its products are rounded to
    `dtype` as well.

    Args:
      a: `[..., m, n]`.
      b: `[n, p]`.
      dtype: of the operands.

    Returns:
      float32, `[..., m, p]`.
    """
    rows = a.reshape(-1, a.shape[-1])
    return _dot(rows, b, dtype).reshape(*a.shape[:-1], b.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    return product(a.astype(dtype), b.astype(dtype))


def _forward(
    a: jax.Array, b: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    a, b = a.astype(dtype), b.astype(dtype)
    return product(a, b), (a, b)


def _backward(
    dtype: DTypeLike, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    gradient = gradient.astype(dtype)
    # A float32 product reads a transpose in place; copying pays only for the smaller operand.
    in_place = a.dtype == jnp.float32 and a.shape[1] > gradient.shape[1]
    a_t = a.T if in_place else transposed(a)
    return product_with_transpose(gradient, b), product(a_t, gradient)


_dot.defvjp(_forward, _backward)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` of two matrices of one dtype, summed in float32."""
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def product_with_transpose(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b.T` of two matrices of one dtype, summed in float32."""
    if b.dtype == jnp.float32:
        return product(a, b.T)

    def on_cpu(a: jax.Array, b: jax.Array) -> jax.Array:
        # A copy costs its size, and many times that of wide rows a power of two apart, which
        # evict each other from the cache. Copying `a` instead of `b` takes one of the result
        # too, in float32 and dearer by the byte.
        if len(a) * (b.shape[1] + 4 * len(b)) > len(b) * b.shape[1]:
            return product(a, transposed(b))
        return lax.optimization_barrier(product(b, transposed(a))).T

    return lax.platform_dependent(a, b, cpu=on_cpu, default=lambda a, b: product(a, b.T))


def transposed(a: jax.Array) -> jax.Array:
    """`a.T` of a matrix, laid out in memory as such where that is faster.

    XLA's CPU backend folds a transpose into the product that follows, and then widens
    bfloat16 operands to float32, or fails. The flat copy made here is not folded.
    """

    def copied(a: jax.Array) -> jax.Array:
        return lax.optimization_barrier(a.T.reshape(-1)).reshape(a.shape[::-1])

    return lax.platform_dependent(a, cpu=copied, default=lambda a: a.T)
