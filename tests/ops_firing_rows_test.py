"""The kernel on firing rows against the dense one, in gradients and in whole sweeps."""

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
    loss_with,
)
from hyperparameters import TEMPLATE, hyperparameters
from hypothesis import given, settings
from hypothesis import strategies as st

import sae_jax
from sae_jax.ops import firing_rows
from sae_jax.ops.activation import TOP_K
from sae_jax.ops.tuning import FIRING_NUM_WIDTHS
from sae_jax.sweep.batches import InMemory
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import plan_sweep
from sae_jax.sweep.step import Program, epoch_program, init_group, train_epoch

firing_loss = loss_with(firing_rows.reconstruct)


def with_firing(d_sae, firing, seed=0):
    """An SAE of which every sample selects the given latents, with k as many; samples."""
    params, x = arrays(d_sae, seed)
    return params | {"b_enc": params["b_enc"].at[jnp.asarray(firing)].set(50.0)}, x


@pytest.mark.parametrize("d_sae", [16, 100, 512, 1000])
@pytest.mark.parametrize("k", [1, 7, 16])
def test_gradients_are_the_dense_ones(d_sae, k):
    params, x = arrays(d_sae)
    assert_dense_gradients(firing_loss, params, x, jnp.int32(k))


@pytest.mark.parametrize("d_sae", [16, 512])
def test_gradients_of_samples_are_the_modules(d_sae):
    params, x = arrays(d_sae)
    assert_gradients_of_samples(firing_loss, params, x, jnp.int32(7))


def test_gradients_of_samples_are_traced_where_they_are_asked_for():
    params, x = arrays(512)

    def num_switches(**of):
        jaxpr = jax.make_jaxpr(jax.grad(firing_loss, **of))(params, x, jnp.int32(7))
        switches = [e for e in jaxpr.eqns if e.primitive.name == "cond"]
        return len([e for e in switches if len(e.params["branches"]) == FIRING_NUM_WIDTHS])

    # Reconstructions and gradients; then those of samples.
    assert num_switches() == 2
    assert num_switches(argnums=(0, 1)) == 3


def test_a_loss_without_a_gradient_gives_zeros():
    @jax.custom_vjp
    def constant(x_hat):
        return jnp.sum(x_hat)

    constant.defvjp(lambda x_hat: (jnp.sum(x_hat), None), lambda _, gradient: (None,))
    params, x = arrays(16)

    def loss(w_dec):
        arguments = params["w_enc"].T, params["b_enc"], w_dec, params["b_dec"], x, jnp.int32(3)
        return constant(firing_rows.reconstruct(*arguments, TOP_K, "float32"))

    np.testing.assert_array_equal(jax.grad(loss)(params["w_dec"]), 0.0)


@settings(max_examples=20, deadline=None)
@given(firing=st.sets(st.integers(0, 255), min_size=1, max_size=256))
def test_gradients_are_the_dense_ones_whichever_latents_fire(firing):
    params, x = with_firing(256, sorted(firing))
    assert_dense_gradients(firing_loss, params, x, jnp.int32(len(firing)))


def test_gradients_are_the_dense_ones_in_bfloat16():
    params, x = arrays(512)
    loss_of = partial(firing_loss, dtype="bfloat16")
    assert_dense_gradients(loss_of, params, x, jnp.int32(8), "bfloat16", tolerance=2e-2)


def test_ties_go_to_the_lower_latent_as_with_the_dense_kernel():
    params, x = arrays(256)
    assert_dense_gradients(firing_loss, doubled(params), x, jnp.int32(7))


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
        return firing_rows._at_least_wide(num_rows, lambda width, _: width, jnp.zeros(num_latents))

    found = jax.jit(jax.vmap(width_for))(jnp.arange(1, num_latents + 1))
    expected = [min(w for w in widths if w >= n) for n in range(1, num_latents + 1)]
    np.testing.assert_array_equal(found, expected)


def test_sweeps_with_both_kernels_agree():
    members = [
        sae_jax.SAEConfig(300, 4),
        sae_jax.SAEConfig(290, 7, seed=1, learning_rate=3e-3),
        sae_jax.SAEConfig(150, 150, seed=2),
    ]
    assert_dense_sweep("firing_rows", members, max_padding=0.9)


def test_latents_of_a_relu_have_the_dense_gradients():
    """Where fewer than k pre-activations are positive, those kept beyond them are zero."""
    params, x = arrays(128)
    few = params | {"b_enc": params["b_enc"] - 1.5}
    z = TOP_K(x @ few["w_enc"] + few["b_enc"][None, :], jnp.int32(40))
    assert z.any()
    assert (z != 0).sum(axis=1).min() < 40
    loss_of = loss_with(firing_rows.reconstruct, TOP_K)
    assert_dense_gradients(loss_of, few, x, jnp.int32(40), activation=TOP_K)


def test_padding_stays_zero_and_a_new_k_does_not_recompile():
    program = Program(TEMPLATE, kernel="firing_rows", sequential=True)
    source, num_compiled = InMemory(arrays(8)[1], 32, Placement.default()), 0
    for k in ((3, 40), (20, 1)):
        hyper = hyperparameters((40, k[0], 0, 1e-3), (64, k[1], 1, 1e-3))
        state = init_group(hyper, np.zeros(D_IN, np.float32), program=program, d_in=D_IN, width=64)
        for epoch in range(2):
            state, _ = train_epoch(state, hyper, source.epoch(0, epoch), 0, program=program)
        num_compiled = num_compiled or epoch_program(program)._cache_size()
        for params in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
            assert params["w_enc_t"][0, :40].any()
            for name in ("w_enc_t", "b_enc", "w_dec"):
                assert not params[name][0, 40:].any()
    assert epoch_program(program)._cache_size() == num_compiled


def test_auto_takes_it_in_float32_for_large_members_on_a_cpu(without_loops):
    def kernel_of(d_sae, k, d_in, dtype):
        config = sae_jax.TrainConfig(compute_dtype=dtype)
        members = [sae_jax.SAEConfig(d_sae, k)]
        (group,) = plan_sweep(members, {(None, None): (100_000, d_in, d_in)}, config).groups
        return group.kernel

    assert kernel_of(512, 50, 2048, "float32") == "firing_rows"
    assert kernel_of(512, 50, 2048, "bfloat16") == "dense"
    assert kernel_of(100, 50, 576, "float32") == "dense"
    assert kernel_of(4096, 64, 2048, "float32") == "selected_rows"
    assert kernel_of(4096, 65, 2048, "float32") == "firing_rows"
