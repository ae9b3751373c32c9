import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_reference import train as train_in_torch

from sae_jax.activations.slices import epoch_order
from sae_jax.sweep.step import (
    Hyperparameters,
    init_group,
    train_epoch,
    with_encoders_transposed,
)

D_IN, WIDTH, BATCH_SIZE = 12, 24, 16


def samples(n, d_in=D_IN, seed=0):
    """A sparse mixture of directions with an offset, which a TopK SAE can fit."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(3 * d_in, d_in))
    weights = rng.exponential(size=(n, 3 * d_in)) * (rng.random((n, 3 * d_in)) < 0.1)
    return (weights @ directions + rng.normal(size=d_in)).astype(np.float32)


def hyperparameters(*members):
    """Of members given as (d_sae, k, seed, learning rate)."""
    d_sae, k, seed, learning_rate = zip(*members, strict=True)
    return Hyperparameters(
        seed=jnp.array(seed, jnp.uint32),
        d_sae=jnp.array(d_sae, jnp.int32),
        k=jnp.array(k, jnp.int32),
        learning_rate=jnp.array(learning_rate, jnp.float32),
        data_seed=jnp.zeros(len(members), jnp.uint32),
    )


WAYS = {
    "vmap": {"one_by_one": False},
    "scan": {"one_by_one": True},
    "compact": {"one_by_one": True, "path": "compact"},
}
in_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def train(
    hyper,
    x,
    width,
    *,
    epochs,
    batch_size=BATCH_SIZE,
    data_seed=None,
    dtype="float32",
    one_by_one=False,
    path="dense",
    one_order=True,
):
    """The state after some epochs, and the losses of every step, `[num_steps, M]`."""
    if data_seed is not None:
        hyper = hyper._replace(data_seed=jnp.full_like(hyper.data_seed, data_seed))
    state = init_group(hyper, d_in=x.shape[1], width=width)
    if path != "dense":
        state = with_encoders_transposed(state)
    history = []
    for epoch in range(epochs):
        state, losses = train_epoch(
            state,
            hyper,
            jnp.asarray(x),
            jnp.int32(epoch),
            batch_size=batch_size,
            dtype=dtype,
            one_by_one=one_by_one,
            path=path,
            one_order=one_order,
        )
        history.append(np.asarray(losses))
    if path != "dense":
        state = with_encoders_transposed(state)
    return jax.device_get(state), np.concatenate(history)


def batches(n, batch_size, epochs, data_seed=0):
    """The rows of each step, the smaller last batch of an epoch kept."""
    for epoch in range(epochs):
        order = np.asarray(epoch_order(data_seed, epoch, n))
        yield from (order[start : start + batch_size] for start in range(0, n, batch_size))


def initial_params(hyper, member, d_in, width):
    params = jax.device_get(init_group(hyper, d_in=d_in, width=width).params)
    return true_size(params, member, int(hyper.d_sae[member]))


def true_size(params, member, d_sae):
    return {
        "w_enc": params["w_enc"][member, :, :d_sae],
        "b_enc": params["b_enc"][member, :d_sae],
        "w_dec": params["w_dec"][member, :d_sae],
        "b_dec": params["b_dec"][member],
    }


def assert_equal_params(got, want, **tolerance):
    for name in want:
        np.testing.assert_allclose(got[name], want[name], err_msg=name, **tolerance)


@in_every_way
@pytest.mark.parametrize("n", [96, 70, 9], ids=["whole batches", "a rest", "less than a batch"])
def test_an_epoch_equals_pytorch_with_every_sample_used_once(n, way):
    x, hyper = samples(n), hyperparameters((20, 4, 0, 1e-3), (WIDTH, 6, 1, 3e-3))
    state, losses = train(hyper, x, WIDTH, epochs=2, **way)
    assert losses.shape == (2 * -(-n // BATCH_SIZE), 2)
    for member, (d_sae, k, learning_rate) in enumerate([(20, 4, 1e-3), (WIDTH, 6, 3e-3)]):
        torch_losses, torch_params = train_in_torch(
            initial_params(hyper, member, D_IN, WIDTH),
            x,
            batches(n, BATCH_SIZE, epochs=2),
            k=k,
            learning_rate=learning_rate,
        )
        np.testing.assert_allclose(losses[:, member], torch_losses, rtol=1e-5)
        assert_equal_params(
            true_size(state.params, member, d_sae), torch_params, rtol=1e-3, atol=1e-5
        )


def test_100_steps_equal_pytorch():
    n, d_in, d_sae, k, batch_size = 600, 64, 128, 16, 64
    x, hyper = samples(n, d_in), hyperparameters((d_sae, k, 3, 1e-3))
    _, losses = train(hyper, x, d_sae, epochs=10, batch_size=batch_size)
    torch_losses, _ = train_in_torch(
        initial_params(hyper, 0, d_in, d_sae), x, batches(n, batch_size, epochs=10), k=k
    )
    assert len(losses) == len(torch_losses) == 100
    np.testing.assert_allclose(losses[:, 0], torch_losses, rtol=1e-4)
    assert losses[-1, 0] < 0.5 * losses[0, 0]


@st.composite
def members(draw):
    """(d_sae, k, seed, learning rate); few sizes, for each compiles."""
    d_sae = draw(st.sampled_from([10, WIDTH]))
    return d_sae, draw(st.integers(1, d_sae)), draw(st.integers(0, 2**32 - 1)), 1e-3


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(members(), members(), members()),
    st.sampled_from(list(WAYS.values())),
)
def test_a_member_equals_its_solo_run_and_padding_stays_zero(mix, way):
    x = samples(70)
    state, losses = train(hyperparameters(*mix), x, WIDTH, epochs=4, **way)
    assert len(losses) == 20
    moments = state.opt_state
    for i, member in enumerate(mix):
        d_sae = member[0]
        solo_state, solo_losses = train(hyperparameters(member), x, d_sae, epochs=4)
        np.testing.assert_allclose(losses[:, i], solo_losses[:, 0], rtol=1e-5)
        assert_equal_params(
            true_size(state.params, i, d_sae),
            true_size(solo_state.params, 0, d_sae),
            rtol=1e-3,
            atol=1e-5,
        )
        for params in (state.params, moments.mu, moments.nu):
            assert not params["w_enc"][i, :, d_sae:].any()
            assert not params["b_enc"][i, d_sae:].any()
            assert not params["w_dec"][i, d_sae:].any()


@in_every_way
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_diverging_member_leaves_the_others_bit_for_bit(dtype, way):
    x, how = samples(70), {"epochs": 2, "dtype": dtype, **way}
    calm, wild = (15, 4, 0, 1e-3), (WIDTH, 6, 1, 1e30)
    before, losses_before = train(hyperparameters(calm, (WIDTH, 6, 1, 1e-3)), x, WIDTH, **how)
    after, losses_after = train(hyperparameters(calm, wild), x, WIDTH, **how)
    assert np.isfinite(losses_after[0, 1])
    assert not np.isfinite(losses_after[2:, 1]).any()
    np.testing.assert_array_equal(losses_after[:, 0], losses_before[:, 0])
    chex.assert_trees_all_equal(
        true_size(after.params, 0, 15), true_size(before.params, 0, 15), strict=True
    )


def test_new_hyperparameters_and_orders_do_not_recompile():
    x = samples(70)
    train(hyperparameters((15, 4, 0, 1e-3), (WIDTH, 6, 1, 1e-3)), x, WIDTH, epochs=2)
    num_compiled = train_epoch._cache_size(), init_group._cache_size()
    losses = [
        train(hyperparameters(*mix), x, WIDTH, epochs=3, data_seed=data_seed)[1]
        for data_seed, mix in enumerate(
            [
                [(15, 4, 0, 1e-3), (WIDTH, 6, 1, 1e-3)],
                [(7, 7, 2**32 - 1, 3e-4), (9, 1, 5, 1e-2)],
                [(WIDTH, WIDTH, 9, 1.0), (2, 2, 9, 1e-5)],
            ]
        )
    ]
    assert (train_epoch._cache_size(), init_group._cache_size()) == num_compiled
    assert len({array.tobytes() for array in losses}) == 3


def test_bfloat16_differs_from_float32_by_its_rounding():
    x, hyper = samples(70), hyperparameters((WIDTH, 8, 0, 1e-3), (10, 2, 1, 1e-3))
    _, exact = train(hyper, x, WIDTH, epochs=4)
    state, rounded = train(hyper, x, WIDTH, epochs=4, dtype="bfloat16")
    assert (exact != rounded).any()
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}


def test_the_given_state_is_donated():
    hyper = hyperparameters((WIDTH, 6, 1, 1e-3), (10, 2, 1, 1e-3))
    state = init_group(hyper, d_in=D_IN, width=WIDTH)
    x = jnp.asarray(samples(70))
    train_epoch(state, hyper, x, jnp.int32(0), batch_size=BATCH_SIZE, dtype="float32")
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@in_every_way
def test_members_with_orders_of_their_own_equal_those_of_one_order(way):
    x = samples(70)
    hyper = hyperparameters((WIDTH, 8, 0, 1e-3), (10, 2, 1, 1e-3))
    own = hyper._replace(data_seed=jnp.array([3, 5], jnp.uint32))
    _, losses = train(own, x, WIDTH, epochs=2, one_order=False, **way)
    for i, data_seed in enumerate((3, 5)):
        _, expected = train(hyper, x, WIDTH, epochs=2, data_seed=data_seed, **way)
        np.testing.assert_allclose(losses[:, i], expected[:, i], rtol=1e-5)
    assert not np.allclose(losses[1:, 0], train(hyper, x, WIDTH, epochs=2, **way)[1][1:, 0])
