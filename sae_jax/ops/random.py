"""PRNG keys of JAX's Threefry generator, whose numbers a CPU draws in C++.

The numbers are those of JAX's own keys (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1,
2, 3", doi:10.1145/2063384.2063405), whatever a program has set as JAX's default. XLA takes longer
to compile the generator's 20 rounds than a sweep to draw its numbers.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl

from sae_jax.ops import native


def key(seed: jax.Array | int) -> jax.Array:
    """The key of a seed; draws what `jax.random.key(seed, impl="threefry2x32")` draws."""
    return jax.random.key(seed, impl=_THREEFRY)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    def loop(key: jax.Array) -> jax.Array:
        num = math.prod(shape)
        return native.threefry_pairs(key, jnp.uint32(0), num).reshape(*shape, 2)

    return native.on_cpu(loop, _of_jax(threefry_prng_impl.split, shape), key)


def _fold_in(key: jax.Array, data: jax.Array | int) -> jax.Array:
    def loop(key: jax.Array, data: jax.Array) -> jax.Array:
        return native.threefry_pairs(key, data, 1)[0]

    compiled = _of_jax(threefry_prng_impl.fold_in)
    return native.on_cpu(loop, compiled, key, jnp.asarray(data, jnp.uint32))


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    compiled = _of_jax(threefry_prng_impl.random_bits, bit_width, shape)
    if bit_width != 32:
        return compiled(key)
    return native.on_cpu(partial(native.threefry_bits, shape=shape), compiled, key)


def _of_jax(function: Callable[..., jax.Array], *static: Any) -> Callable[..., jax.Array]:
    """JAX's function, with its default way of counting, whatever a program has set."""

    def drawn(*arrays: jax.Array) -> jax.Array:
        with jax.threefry_partitionable(True):
            return function(*arrays, *static)

    return drawn


_THREEFRY = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="sae_jax_threefry2x32",
    tag="sae_jax_fry",
)
