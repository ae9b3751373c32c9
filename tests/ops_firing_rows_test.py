"""The compact path against the dense one, in gradients and in whole sweeps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradients import (
    D_IN,
    arrays,
    assert_dense_gradients,
    assert_dense_sweep,
    assert_gradients_of_samples,
    doubled,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import sae_jax
from sae_jax.architectures import losses
from sae_jax.architectures.base import PARAM_NAMES
from sae_jax.sweep.plan import plan_sweep
from sae_jax.sweep.step import (
    Hyperparameters,
    init_group,
    train_epoch,
    with_encoders_transposed,
)


def compact_loss(params, x, k, dtype="float32"):
    w_enc, *others = (params[name] for name in PARAM_NAMES)
    return losses.mse(compact.reconstruct(w_enc.T, *others, x, k, dtype), x)


def with_firing(d_sae, firing, seed=0):
    """An SAE of which every sample selects the given latents, with k as many; samples."""
    params, x = arrays(d_sae, seed)
    return params | {"b_enc": params["b_enc"].at[jnp.asarray(firing)].set(50.0)}, x


@pytest.mark.parametrize("d_sae", [16, 100, 512, 1000])
@pytest.mark.parametrize("k", [1, 7, 16])
def test_gradients_are_the_dense_ones(d_sae, k):
    params, x = arrays(d_sae)
    assert_dense_gradients(compact_loss, params, x, jnp.int32(k))


@pytest.mark.parametrize("d_sae", [16, 512])
def test_gradients_of_samples_are_the_modules(d_sae):
    params, x = arrays(d_sae)
    assert_gradients_of_samples(compact_loss, params, x, jnp.int32(7))


@settings(max_examples=20, deadline=None)
@given(firing=st.sets(st.integers(0, 255), min_size=1, max_size=256))
def test_gradients_are_the_dense_ones_whichever_latents_fire(firing):
    params, x = with_firing(256, sorted(firing))
    assert_dense_gradients(compact_loss, params, x, jnp.int32(len(firing)))


def test_gradients_are_the_dense_ones_in_bfloat16():
    params, x = arrays(512)
    loss_of = partial(compact_loss, dtype="bfloat16")
    assert_dense_gradients(loss_of, params, x, jnp.int32(8), "bfloat16", tolerance=2e-2)


def test_ties_go_to_the_lower_latent_as_on_the_dense_path():
    params, x = arrays(256)
    assert_dense_gradients(compact_loss, doubled(params), x, jnp.int32(7))


@pytest.mark.parametrize(
    ("num_latents", "widths"),
    [
        (512, [64, 128, 192, 256, 320, 384, 448, 512]),
        (1000, [128, 256, 384, 512, 640, 768, 896, 1000]),
        (100, [16, 32, 48, 64, 80, 96, 100]),
        (10, [10]),
    ],
)
def test_the_narrowest_width_that_holds_the_latents_is_computed(num_latents, widths):
    def width_for(num_rows):
        return compact._at_least_wide(num_rows, lambda width, _: width, jnp.zeros(num_latents))

    found = jax.jit(jax.vmap(width_for))(jnp.arange(1, num_latents + 1))
    expected = [min(w for w in widths if w >= n) for n in range(1, num_latents + 1)]
    np.testing.assert_array_equal(found, expected)


def test_sweeps_on_both_paths_agree():
    members = [
        sae_jax.SAEConfig(300, 4),
        sae_jax.SAEConfig(290, 7, seed=1, learning_rate=3e-3),
        sae_jax.SAEConfig(150, 150, seed=2),
    ]
    assert_dense_sweep("compact", members, max_padding=0.9)


def hyperparameters(d_sae, k):
    return Hyperparameters(
        seed=jnp.arange(len(k), dtype=jnp.uint32),
        d_sae=jnp.array(d_sae, jnp.int32),
        k=jnp.array(k, jnp.int32),
        learning_rate=jnp.full(len(k), 1e-3, jnp.float32),
        data_seed=jnp.zeros(len(k), jnp.uint32),
    )


def test_padding_stays_zero_and_a_new_k_does_not_recompile():
    how = {"batch_size": 32, "dtype": "float32", "path": "compact", "one_by_one": True}
    x, num_compiled = arrays(8)[1], 0
    for k in ([3, 40], [20, 1]):
        hyper = hyperparameters([40, 64], k)
        state = with_encoders_transposed(init_group(hyper, d_in=D_IN, width=64))
        for epoch in range(2):
            state, _ = train_epoch(state, hyper, x, jnp.int32(epoch), **how)
        num_compiled = num_compiled or train_epoch._cache_size()
        for params in (state.params, state.opt_state.mu, state.opt_state.nu):
            assert params["w_enc"][0, :40].any()
            for name in ("w_enc", "b_enc", "w_dec"):
                assert not params[name][0, 40:].any()
    assert train_epoch._cache_size() == num_compiled


def test_auto_takes_it_in_float32_for_large_members_on_a_cpu():
    def path_of(d_sae, k, d_in, dtype):
        config = sae_jax.TrainConfig(compute_dtype=dtype)
        members = [sae_jax.SAEConfig(d_sae, k)]
        (group,) = plan_sweep(members, {(None, None): (1000, d_in)}, config).groups
        return group.path

    assert path_of(512, 50, 2048, "float32") == "compact"
    assert path_of(512, 50, 2048, "bfloat16") == "dense"
    assert path_of(100, 50, 576, "float32") == "dense"
    assert path_of(4096, 64, 2048, "float32") == "sparse"
    assert path_of(4096, 65, 2048, "float32") == "compact"
