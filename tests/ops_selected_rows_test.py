"""The kernel on selected rows against the dense one, NumPy, and itself under vmap."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import (
    arrays,
    assert_dense_gradients,
    assert_dense_sweep,
    assert_gradients_of_samples,
    dense_loss,
    doubled,
    loss_with,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import sae_jax
from sae_jax.architectures.base import PARAM_NAMES
from sae_jax.ops import native, selected_rows
from sae_jax.ops.activation import ABS_TOP_K, TOP_K
from sae_jax.ops.top_k import top_k_indices
from sae_jax.sweep.plan import plan_sweep


@pytest.fixture(autouse=True, scope="module", params=["loops in C++", "loops of XLA"])
def _loops(request):
    """All holds of both."""
    if request.param == "loops in C++" and not native.is_built():
        pytest.skip("the loops in C++ are not built: there was no compiler for them")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "loops of XLA":
            patch.setattr(native, "is_built", lambda: False)
        jax.clear_caches()
        yield
    jax.clear_caches()


def selected_loss(k_max, activation=ABS_TOP_K):
    return loss_with(selected_rows.reconstruct, activation, k_max=k_max)


def assert_same_gradients(params, x, k, k_max, dtype="float32", tolerance=1e-5):
    loss_of = partial(selected_loss(k_max), dtype=dtype)
    assert_dense_gradients(loss_of, params, x, k, dtype, tolerance)


def test_latents_of_a_relu_have_the_dense_gradients():
    params, x = arrays(128)
    few = params | {"b_enc": params["b_enc"] - 1.5}
    loss_of = selected_loss(40, TOP_K)
    assert_dense_gradients(loss_of, few, x, jnp.int32(40), activation=TOP_K)


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 5),
    width=st.sampled_from([1, 7, 33, 200, 513]),
    num_values=st.integers(1, 40),
    data=st.data(),
)
def test_top_k_is_a_stable_descending_sort(num_rows, width, num_values, data):
    k = data.draw(st.integers(1, width))
    seed = data.draw(st.integers(0, 2**16))
    # Few distinct values, zero among them: rows are full of ties.
    values = np.random.default_rng(seed).integers(0, num_values, (num_rows, width))
    values = values.astype(np.float32)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_k_indices(jnp.asarray(values), k), expected)


@pytest.mark.parametrize(
    ("d_sae", "k", "k_max"),
    [
        (512, 8, 8),
        (512, 5, 8),  # a traced k below the largest
        (1000, 1, 1),  # not a multiple of the block
        (64, 40, 50),  # every latent is crowded
        (40, 40, 40),  # all latents are kept
    ],
)
def test_gradients_are_the_dense_ones(d_sae, k, k_max):
    params, x = arrays(d_sae)
    assert_same_gradients(params, x, jnp.int32(k), k_max)


@pytest.mark.parametrize(("d_sae", "k", "k_max"), [(512, 5, 8), (64, 40, 50)])
def test_gradients_of_samples_are_the_modules(d_sae, k, k_max):
    params, x = arrays(d_sae)
    loss_of = selected_loss(k_max)
    assert_gradients_of_samples(loss_of, params, x, jnp.int32(k))


def test_gradients_are_the_dense_ones_in_bfloat16():
    params, x = arrays(512)
    assert_same_gradients(params, x, jnp.int32(8), 8, dtype="bfloat16", tolerance=2e-2)


def test_ties_go_to_the_lower_latent_as_with_the_dense_kernel():
    params, x = arrays(256)
    assert_same_gradients(doubled(params), x, jnp.int32(7), 7)


def test_a_latent_that_every_sample_selects_gets_its_whole_gradient():
    params, x = arrays(400)
    always = params | {"b_enc": params["b_enc"].at[jnp.array([3, 399])].set(50.0)}
    assert_same_gradients(always, x, jnp.int32(6), 9)


def test_vmap_over_members_is_each_member_alone():
    (first, x), (second, _) = arrays(300, seed=0), arrays(300, seed=5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    k = jnp.array([3, 11], jnp.int32)
    grad = jax.grad(selected_loss(11))
    together = jax.jit(jax.vmap(grad, in_axes=(0, None, 0)))(stacked, x, k)
    for i, params in enumerate((first, second)):
        alone = jax.grad(dense_loss)(params, x, k[i])
        for name in PARAM_NAMES:
            np.testing.assert_allclose(together[name][i], alone[name], rtol=0, atol=2e-6)


def test_sweeps_with_both_kernels_agree():
    members = [sae_jax.SAEConfig(300, 4), sae_jax.SAEConfig(290, 7, seed=1, learning_rate=3e-3)]
    assert_dense_sweep("selected_rows", members)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("dense", [("dense", None)] * 2),
        ("firing_rows", [("firing_rows", None)] * 2),
        ("selected_rows", [("selected_rows", 6), ("selected_rows", 4)]),
    ],
)
def test_the_plan_chooses_a_kernel_for_each_group(kernel, expected):
    config = sae_jax.TrainConfig(kernel=kernel, max_padding=0.1)
    members = [
        sae_jax.SAEConfig(16384, 6),
        sae_jax.SAEConfig(16000, 5),
        sae_jax.SAEConfig(64, 4),
        dataclasses.replace(sae_jax.SAEConfig(64, 4), seed=1),
    ]
    groups = plan_sweep(members, {(None, None): (1000, 576, 576)}, config).groups
    assert [group.members for group in groups] == [(0, 1), (2, 3)]
    assert [(group.kernel, group.k_max) for group in groups] == expected
