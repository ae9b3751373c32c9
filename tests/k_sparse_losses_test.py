"""Losses of SAEs that keep k latents, with AuxK, against PyTorch in float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from k_sparse import (
    D_IN,
    D_SAE,
    DEAD_AFTER,
    SINCE,
    assert_padding_changes_nothing,
    assert_same_loss,
    loss_on,
    oracle,
    seldom_firing_params,
    still_dead,
)
from random_saes import random_params
from sweeps import samples

from sae_jax import SAEConfig
from sae_jax.architectures.batch_topk import BatchTopKSAE

K = 3
CASES = [
    (architecture, preset)
    for architecture in ("abs_topk", "topk", "batch_topk", "matryoshka")
    for preset in (None, "saelens", "dictionary_learning")
    if (architecture, preset) != ("abs_topk", "dictionary_learning")
]


def config(architecture, preset, aux_k=4):
    return SAEConfig(
        D_SAE,
        K,
        architecture=architecture,
        preset=preset,
        center_input=True,
        aux_coefficient=0.5,
        aux_k=aux_k,
        dead_after=DEAD_AFTER,
        prefix_fractions=(0.25, 0.5, 1.0) if architecture == "matryoshka" else None,
    )


@pytest.mark.parametrize(("architecture", "preset"), CASES)
def test_loss_and_gradients_equal_pytorch(architecture, preset):
    params, x = seldom_firing_params(), samples(40, D_IN)
    one = config(architecture, preset)
    expected = oracle(one, params, x, still_dead(one, params, x))
    found = loss_on(one, params, x, since_fired=SINCE)
    assert_same_loss(found, expected)
    # Samples since a latent fired: 0 if it did in this batch, else the batch's 40 more.
    fired = (expected[2] != 0).any(axis=0)
    np.testing.assert_array_equal(found[2]["since_fired"], np.where(fired, 0, SINCE + 40))


@pytest.mark.parametrize(("architecture", "preset"), CASES[:5])
def test_fewer_dead_latents_than_may_be_revived(architecture, preset):
    params, x = seldom_firing_params(), samples(40, D_IN)
    one = config(architecture, preset, aux_k=9)
    dead = still_dead(one, params, x)
    assert dead.sum() < 9
    assert_same_loss(loss_on(one, params, x, since_fired=SINCE), oracle(one, params, x, dead))


@pytest.mark.parametrize(("architecture", "preset"), CASES)
def test_padding_changes_nothing(architecture, preset):
    assert_padding_changes_nothing(config(architecture, preset), samples(40, D_IN))


def test_first_latents_of_a_matryoshka_learn_from_every_prefix():
    """The gradient of an inner prefix reaches its own latents alone."""
    params, x = random_params(0, D_IN, D_SAE), samples(40, D_IN)
    one = dataclasses.replace(config("matryoshka", "saelens"), aux_coefficient=0.0)
    wide = dataclasses.replace(one, prefix_fractions=(1.0,))
    extra = {
        name: loss_on(one, params, x)[1][name] - loss_on(wide, params, x)[1][name]
        for name in ("w_dec", "b_enc")
    }
    for name, difference in extra.items():
        scale = np.abs(difference).max()
        assert np.abs(difference[:12]).max() == scale > 0, name
        np.testing.assert_allclose(difference[12:], 0, atol=1e-5 * scale, err_msg=name)


# XLA's CPU backend may take subnormal numbers for zero.
NORMAL = st.floats(-9, 9, width=32, allow_subnormal=False)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (4, 6), elements=NORMAL), st.integers(1, 6))
def test_a_batch_keeps_its_largest_positive_latents(pre, k):
    sae = BatchTopKSAE(random_params(0, D_IN, 6), 0.0)
    z = np.asarray(sae.activate_batch(jnp.asarray(pre), k))
    kept = z != 0
    np.testing.assert_array_equal(z[kept], pre[kept])
    assert kept.sum() == min(4 * k, (pre > 0).sum())
    if kept.any() and not kept.all():
        assert pre[kept].min() >= np.maximum(pre[~kept], 0).max()
