"""Random numbers drawn in C++ against JAX's own, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_jax.ops import native, random
from sae_jax.sweep.batches import epoch_order

SEEDS = st.integers(0, 2**32 - 1)
needs_loops = pytest.mark.skipif(
    not native.is_built(), reason="the loops in C++ are not built: there was no compiler for them"
)


def drawn(key, number, shape):
    """Numbers of every kind, and words of a key and of keys derived from it side by side."""
    keys = jax.random.split(key, (3, 2))
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), number)
    for_each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    many = for_each(folded, jnp.arange(5, dtype=jnp.uint32))
    return {
        "split": jax.random.key_data(keys),
        "folded": jax.random.key_data(folded),
        "uniform": jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
        "of many": jax.vmap(jax.vmap(lambda key: jax.random.normal(key, shape)))(many),
        "permutation": jax.random.permutation(folded[0], 100),
        "bytes": jax.random.bits(key, (7,), jnp.uint8),
    }


@needs_loops
@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(0, 2**32 - 1), st.sampled_from([(), (1,), (0, 3), (40,), (3, 17)]))
def test_numbers_are_jaxs_own_to_the_bit(seed, number, shape):
    expected = drawn(jax.random.key(seed, impl="threefry2x32"), jnp.uint32(number), shape)
    found = drawn(random.key(seed), jnp.uint32(number), shape)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@needs_loops
def test_known_answer():
    """The one without an upper word that the generator's authors publish, in Random123's tests."""
    zeros = jnp.zeros(2, jnp.uint32)
    pairs = native.threefry_pairs(zeros, zeros[0], 1)
    assert pairs.tolist() == [[0x6B200159, 0x99BA4EFE]]
    assert native.threefry_bits(zeros, (1,)).tolist() == [0x6B200159 ^ 0x99BA4EFE]


@needs_loops
def test_orders_are_drawn_in_cpp():
    text = jax.jit(lambda seed: epoch_order(seed, 0, 10)).lower(0).as_text()
    assert "sae_jax_threefry_bits" in text


def test_neither_jaxs_default_generator_nor_its_way_of_counting_matters(without_loops):
    expected = jax.random.bits(jax.random.key(3, impl="threefry2x32"), (9,))
    with jax.default_prng_impl("rbg"), jax.threefry_partitionable(False):
        found = jax.random.bits(random.key(3), (9,))
    np.testing.assert_array_equal(found, expected)
