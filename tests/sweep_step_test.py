import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hyperparameters import TEMPLATE, hyperparameters
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import batches, samples
from torch_reference import train as train_in_torch

from sae_jax.architectures.topk import TopKSAE
from sae_jax.sweep.batches import InMemory
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.step import Program, epoch_program, init_group, train_epoch

D_IN, WIDTH, BATCH_SIZE = 12, 24, 16


WAYS = {
    "vmap": {"sequential": False},
    "scan": {"sequential": True},
    "firing rows": {"sequential": True, "kernel": "firing_rows"},
}
in_every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def train(hyper, x, width, *, epochs, batch_size=BATCH_SIZE, data_seed=0, **static):
    """The state after some epochs, and the losses of every step, `[num_steps, M]`."""
    program = Program(TEMPLATE, **static)
    source = InMemory(x, batch_size, Placement.default())
    state = init_group(hyper, x[0], program=program, d_in=x.shape[1], width=width)
    history = []
    for epoch in range(epochs):
        batches = source.epoch(data_seed, epoch)
        first_step = epoch * -(-len(x) // batch_size)
        state, losses = train_epoch(state, hyper, batches, first_step, program=program)
        history.append(np.asarray(losses))
    return jax.device_get(state), np.concatenate(history)


def initial_params(hyper, member, d_in, width):
    center = np.zeros(d_in, np.float32)
    state = init_group(hyper, center, program=Program(TEMPLATE), d_in=d_in, width=width)
    return true_size(jax.device_get(state.params), member, int(hyper.d_sae[member]))


def true_size(params, member, d_sae):
    own = {name: array[member] for name, array in params.items()}
    return TopKSAE.of_true_size(own, d_sae)


def assert_equal_params(got, want, **tolerance):
    for name in want:
        np.testing.assert_allclose(got[name], want[name], err_msg=name, **tolerance)


@in_every_way
@pytest.mark.parametrize(
    "n", [96, 70, 265, 9], ids=["whole batches", "a rest", "a rest of many", "less than a batch"]
)
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


def test_firing_rows_are_compiled_for_a_rest_only_where_epochs_are_short():
    hyper = hyperparameters((WIDTH, 4, 0, 1e-3))
    program = Program(TEMPLATE, sequential=True, kernel="firing_rows")

    def sorts(n):
        state = jax.eval_shape(
            lambda: init_group(hyper, jnp.zeros(D_IN), program=program, d_in=D_IN, width=WIDTH)
        )
        epoch = InMemory(samples(n), BATCH_SIZE, Placement.default()).epoch(0, 0)
        lowered = epoch_program(program).lower(state, hyper, epoch, 0, program=program)
        return lowered.as_text().count("call @argsort")

    # The kernel sorts latents by whether they fire.
    many, few = 8 * BATCH_SIZE, 7 * BATCH_SIZE
    assert [sorts(n) for n in (many, many + 9, few + 9)] == [1, 1, 2]


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
    moments = state.opt_state[0]
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
            assert not params["w_enc_t"][i, d_sae:].any()
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
    num_compiled = epoch_program(Program(TEMPLATE))._cache_size(), init_group._cache_size()
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
    assert (
        epoch_program(Program(TEMPLATE))._cache_size(),
        init_group._cache_size(),
    ) == num_compiled
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
    program = Program(TEMPLATE)
    center = np.zeros(D_IN, np.float32)
    state = init_group(hyper, center, program=program, d_in=D_IN, width=WIDTH)
    batches = InMemory(samples(70), BATCH_SIZE, Placement.default()).epoch(0, 0)
    train_epoch(state, hyper, batches, 0, program=program)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_any_optax_optimizer_with_a_traced_rate():
    """Momentum after clipping, on a schedule, against the same by hand."""

    def optimizer(learning_rate):
        schedule = optax.linear_schedule(1.0, 0.0, 10)
        return optax.chain(
            optax.clip_by_global_norm(0.5),
            optax.trace(decay=0.9),
            optax.scale_by_schedule(lambda step: -learning_rate * schedule(step)),
        )

    x, hyper = samples(48), hyperparameters((10, 3, 0, 0.1), (WIDTH, 6, 1, 0.2))
    state, losses = train(hyper, x, WIDTH, epochs=2, optimizer=optimizer)
    for member, (d_sae, k, rate) in enumerate([(10, 3, 0.1), (WIDTH, 6, 0.2)]):
        params = initial_params(hyper, member, D_IN, WIDTH)
        momentum = dict.fromkeys(params, 0.0)

        def loss_of(params, batch, k=k):
            pre = batch @ params["w_enc"] + params["b_enc"][None, :]
            kept = jnp.argsort(-jnp.abs(pre), axis=1)[:, :k]
            z = (
                jnp.zeros_like(pre)
                .at[jnp.arange(len(batch))[:, None], kept]
                .set(jnp.take_along_axis(pre, kept, 1))
            )
            return jnp.mean((z @ params["w_dec"] + params["b_dec"][None, :] - batch) ** 2)

        for step, rows in enumerate(batches(48, BATCH_SIZE, epochs=2)):
            loss, grads = jax.value_and_grad(loss_of)(params, x[rows])
            np.testing.assert_allclose(losses[step, member], loss, rtol=1e-5)
            norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
            for name in params:
                momentum[name] = 0.9 * momentum[name] + grads[name] * min(1.0, 0.5 / norm)
                params[name] = params[name] - rate * (1 - step / 10) * momentum[name]
        assert_equal_params(true_size(state.params, member, d_sae), params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [9, 16, 25], ids=["a rest", "one batch", "and a rest"])
def test_members_in_turns_are_never_copied_all_at_once(n):
    width, num_members = 512, 40
    program = Program(TEMPLATE, sequential=True)
    hyper = hyperparameters(*[(width, 3, i, 1e-3) for i in range(num_members)])
    source = InMemory(samples(n, D_IN), BATCH_SIZE, Placement.default())
    state = init_group(hyper, np.zeros(D_IN, np.float32), program=program, d_in=D_IN, width=width)
    lowered = epoch_program(program).lower(state, hyper, source.epoch(0, 0), 0, program=program)
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    # One member's state and gradients are 8 times as much as its decoder, and there are 40.
    assert temporary < state.params["w_dec"].nbytes
