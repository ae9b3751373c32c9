"""Loops in C++ that XLA calls on a CPU, where its own compiler writes slower ones.

They are compiled when the package is installed, if there is a C++ compiler; without them the same
results come, up to the order of sums, from what XLA compiles. Their source is `native.cc`, and the
interface that of JAX's foreign functions (https://docs.jax.dev/en/latest/ffi.html, 2025).

They run on a CPU alone: `on_cpu` says what other devices compute.
"""

import ctypes
import importlib.util
import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_FUNCTIONS = (
    "matmul",
    "largest_latents",
    "sum_of_rows",
    "products",
    "sums_over_samples",
    "adam",
    "threefry_pairs",
    "threefry_bits",
)


@cache
def is_built() -> bool:
    """Whether there are such loops; the first time that one asks, XLA is told of them."""
    path = _path()
    if path is None:
        return False
    try:
        library = ctypes.CDLL(path)
        functions = {name: getattr(library, f"sae_jax_{name}") for name in _FUNCTIONS}
        version = library.sae_jax_api_major(), library.sae_jax_api_minor()
        # XLA, told of functions for a newer version, would find no CPU at all.
        if version != _api_version():
            raise OSError(f"their interface is {version}, that of jaxlib {_api_version()}")
    except (OSError, AttributeError, IndexError) as error:
        warnings.warn(
            f"CPUs train slower without the loops of {path}: {error}. To build them for"
            " this jaxlib, install with `pip install --no-build-isolation --no-cache-dir`",
            stacklevel=2,
        )
        return False
    for name, function in functions.items():
        capsule = jax.ffi.pycapsule(function)
        jax.ffi.register_ffi_target(f"sae_jax_{name}", capsule, platform="cpu")
    return True


def _path() -> str | None:
    """The library's file, if there is one."""
    found = importlib.util.find_spec("sae_jax.ops._native")
    return None if found is None else found.origin


def _api_version() -> tuple[int, ...]:
    """The version of the interface that the installed jaxlib has."""
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text(encoding="utf-8")
    return tuple(
        int(re.findall(rf"#define XLA_FFI_API_{part} (\d+)", header)[0])
        for part in ("MAJOR", "MINOR")
    )


def on_cpu(loop: Callable[..., Any], compiled: Callable[..., Any], *arguments: Any) -> Any:
    """What a loop computes on a CPU, and elsewhere, or without loops, what XLA compiles."""
    if not is_built():
        return compiled(*arguments)
    return lax.platform_dependent(*arguments, cpu=loop, default=compiled)


def has_tiles() -> bool:
    """Whether the loops are built and the processor multiplies tiles of bfloat16 (Intel's AMX)."""
    return is_built() and bool(ctypes.CDLL(_path()).sae_jax_has_tiles())


def matmul(
    a: jax.Array,
    b: jax.Array,
    num_parts: int,
    *,
    left_transposed: bool = False,
    right_transposed: bool = False,
) -> jax.Array:
    """`a @ b` on tiles, summed in float32; needs `has_tiles`.

    Args:
      a: float32, `[m, n]`; transposed, `[n, m]`.
      b: float32, `[n, p]`; transposed, `[p, n]`.
      num_parts: how many numbers of bfloat16 make up one of an operand, 1 to 3; of 2 and 3, what
        is infinite or above 3.39e38 is no number, and what is left below 1e-38 is 0.
      left_transposed, right_transposed: whether it is the transpose that is given.

    Returns:
      float32, `[m, p]`.
    """
    shape = _floats(a.shape[left_transposed], b.shape[not right_transposed])
    return _call(
        "matmul",
        shape,
        *(a, b),
        num_parts=np.int64(num_parts),
        left_transposed=left_transposed,
        right_transposed=right_transposed,
    )


def largest_latents(
    product: jax.Array, bias: jax.Array, k: jax.Array, k_max: int, *, positive: bool
) -> tuple[jax.Array, jax.Array]:
    """For each sample, the k latents whose pre-activations are largest in magnitude.

    Ties go to the lower index; what is no number is larger than any.

    Args:
      product: samples times the encoder, float32, `[F, b]`.
      bias: what pre-activations have beside it, float32, `[F]`.
      k: int32, `[]`, at least 1, at most `k_max`.
      k_max: at most F.
      positive: whether negative pre-activations count as 0.

    Returns:
      Indices, int32, `[b, k_max]`, in ascending order, and pre-activations, float32, `[b, k_max]`;
      F, which is no index, and 0 from the k-th on.
    """
    num_samples = product.shape[1]
    indices = jax.ShapeDtypeStruct((num_samples, k_max), jnp.int32)
    shapes = indices, _floats(num_samples, k_max)
    return _call("largest_latents", shapes, product, bias, k, positive=positive)


def sum_of_rows(values: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """For each sample, the sum of the rows that it selects, times their values.

    Args:
      values: float32, `[b, k]`.
      indices: int32, `[b, k]`; one that no row has adds nothing.
      rows: float32, `[F, D]`.

    Returns:
      float32, `[b, D]`.
    """
    return _call("sum_of_rows", _floats(len(values), rows.shape[1]), values, indices, rows)


def products_with_rows(x: jax.Array, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """For each sample, its inner products with the rows that it selects.

    Args:
      x: float32, `[b, D]`.
      indices: int32, `[b, k]`; for one that no row has the product is 0.
      rows: float32, `[F, D]`.

    Returns:
      float32, `[b, k]`.
    """
    return _call("products", _floats(*indices.shape), x, indices, rows)


def sums_over_samples(
    values: jax.Array, indices: jax.Array, x: jax.Array, num_latents: int
) -> tuple[jax.Array, jax.Array]:
    """For each latent, the sum of the samples that select it, times their values.

    Args:
      values: float32, `[b, k]`.
      indices: int32, `[b, k]`; one that no latent has adds nothing.
      x: float32, `[b, D]`.
      num_latents: F.

    Returns:
      The sums, float32, `[F, D]`, and those of the values alone, `[F]`.
    """
    shapes = _floats(num_latents, x.shape[1]), _floats(num_latents)
    return _call("sums_over_samples", shapes, values, indices, x)


def adam(
    numbers: jax.Array,
    gradients: Sequence[jax.Array],
    params: Sequence[jax.Array],
    means: Sequence[jax.Array],
    squares: Sequence[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """Parameters after a step of Adam, and their moments: each number is read and written once.

    All are updated by one call, so that no parameter is still read when its memory is reused.

    Args:
      numbers: float32, `[8]`: decay of the means and 1 less that, the same of the squares, epsilon,
        the learning rate, and the factors that undo the bias of means and squares.
      gradients, params, means, squares: float32; those of one place have one shape. The memory of
        the last three is reused.

    Returns:
      The new parameters, means and squares.
    """
    state = [*params, *means, *squares]
    n = len(gradients)
    updated = _call(
        "adam",
        [_floats(*array.shape) for array in state],
        *(numbers, *gradients, *state),
        reused={1 + n + i: i for i in range(len(state))},
    )
    return updated[:n], updated[n : 2 * n], updated[2 * n :]


def threefry_pairs(key: jax.Array, first: jax.Array, num: int) -> jax.Array:
    """Pairs of random words of Threefry-2x32 for consecutive counts.

    Args:
      key: uint32, `[2]`.
      first: the first count, uint32, `[]`; the upper word of each is 0.
      num: how many.

    Returns:
      uint32, `[num, 2]`.
    """
    pairs = jax.ShapeDtypeStruct((num, 2), jnp.uint32)
    return _call("threefry_pairs", pairs, key, first, vmap_method="broadcast_all")


def threefry_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random words, of each count from 0 on the pair's exclusive or.

    Args:
      key: uint32, `[2]`.
      shape: of less than 2^32 words.

    Returns:
      uint32, `[*shape]`.
    """
    bits = jax.ShapeDtypeStruct(shape, jnp.uint32)
    return _call("threefry_bits", bits, key, vmap_method="broadcast_all")


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(
    name: str,
    result: Any,
    *arguments: jax.Array,
    vmap_method: str = "sequential",
    reused: dict[int, int] | None = None,
    **attributes: Any,
) -> Any:
    function = jax.ffi.ffi_call(
        f"sae_jax_{name}", result, vmap_method=vmap_method, input_output_aliases=reused
    )
    return function(*arguments, **attributes)
