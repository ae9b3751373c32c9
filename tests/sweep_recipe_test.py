"""What a config asks of training beside the published recipe, each against another way to do it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from sweeps import D_IN, quietly, samples

import sae_jax
from sae_jax import SAEConfig, TrainConfig
from sae_jax.architectures.functional import merge
from sae_jax.architectures.training import Batch
from sae_jax.sweep.batches import InMemory, Samples
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.normalization import center_of, geometric_median
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.recipe import annealed_k
from sae_jax.sweep.step import Program, adam, init_group, train_step

D_SAE, K, EPOCHS, BATCH_SIZE = 24, 4, 3, 32
X = samples(200) + 3.0
RUN = {"epochs": EPOCHS, "batch_size": BATCH_SIZE}
STEPS = EPOCHS * -(-len(X) // BATCH_SIZE)


def member(**fields):
    (result,) = quietly([SAEConfig(D_SAE, K, **fields)], X, X, **RUN).members
    return result


def start(config, x=X, train_config=None):
    """Program, state and hyperparameters of one member before its first step."""
    train_config = train_config or TrainConfig(**RUN)
    hyper = hyperparameters([config], train_config, *x.shape)
    program = Program(config.template)
    center = center_of(x, config.b_dec_init)
    state = init_group(hyper, center, program=program, d_in=x.shape[1], width=config.d_sae)
    alone = jax.tree.map(lambda leaf: leaf[0], (state, hyper))
    return program, *alone


def steps(config, num_steps, x=X):
    """The state after each step on the whole of the samples."""
    program, state, hyper = start(config, x)
    states = []
    for step in range(num_steps):
        state, _ = train_step(program, state, hyper, Samples(jnp.asarray(x)), jnp.int32(step))
        states.append(jax.device_get(state.params))
    return states


def assert_same(got, want, **tolerance):
    assert sorted(got) == sorted(want)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("kind", ["center", "center_and_scale"])
def test_normalized_training_is_training_on_normalized_samples(kind):
    mean = X.mean(axis=0, dtype=np.float64)
    scale = np.sqrt(np.mean((X - mean) ** 2)) if kind == "center_and_scale" else 1.0
    z = ((X - mean) / scale).astype(np.float32)
    (plain,) = quietly([SAEConfig(D_SAE, K)], z, z, **RUN).members
    normalized = member(normalize=kind)
    np.testing.assert_allclose(normalized.losses, plain.losses, rtol=1e-4)
    # It takes samples as they are, and its latents are in their units.
    sae, inner = normalized.sae(), plain.sae()
    np.testing.assert_allclose(sae.encode(X), scale * np.asarray(inner.encode(z)), atol=2e-3)
    np.testing.assert_allclose(sae(X), scale * np.asarray(inner(z)) + mean, atol=5e-3)
    assert normalized.metrics["fvu"] == pytest.approx(plain.metrics["fvu"], rel=1e-3)
    np.testing.assert_allclose(
        np.linalg.norm(normalized.params["w_dec"], axis=1).mean(),
        np.linalg.norm(plain.params["w_dec"], axis=1).mean(),
        rtol=1e-3,
    )


def test_layer_norm_is_training_on_standardized_samples():
    mean, std = X.mean(axis=1, keepdims=True), X.std(axis=1, ddof=1, keepdims=True)
    z = ((X - mean) / (std + 1e-5)).astype(np.float32)
    (plain,) = quietly([SAEConfig(D_SAE, K)], z, z, **RUN).members
    normalized = member(normalize="layer_norm")
    np.testing.assert_allclose(normalized.losses, plain.losses, rtol=1e-4)
    assert normalized.sae().normalize_input
    np.testing.assert_allclose(
        normalized.sae()(X), np.asarray(plain.sae()(z)) * std + mean, atol=1e-3
    )


def test_a_centered_inputs_gradient_is_that_of_the_plain_formula():
    config = SAEConfig(D_SAE, K, center_input=True, b_dec_init="mean")
    program, state, hyper = start(config)
    x = jnp.asarray(X)
    batch = Batch(x, x, jnp.ones(D_SAE, bool), jnp.int32(0))

    def loss(params):
        sae = merge(program.template, params, {}, hyper)
        return sae.loss(batch, hyper, program.bound_kernel())

    def plain(p):
        pre = (x - p["b_dec"][None]) @ p["w_enc_t"].T + p["b_enc"][None]
        kth = jax.lax.top_k(jnp.abs(pre), K)[0][:, -1:]
        z = jnp.where(jnp.abs(pre) >= kth, pre, 0.0)
        return jnp.mean((z @ p["w_dec"] + p["b_dec"][None] - x) ** 2)

    values = [jax.value_and_grad(f)(state.params) for f in (loss, plain)]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-5)
    assert_same(values[0][1], values[1][1], atol=1e-4)
    sae = member(center_input=True).sae()
    pre = (X - np.asarray(sae.b_dec)) @ np.asarray(sae.w_enc) + np.asarray(sae.b_enc)
    z = np.asarray(sae.encode(X))
    np.testing.assert_allclose(z[z != 0], pre[z != 0], atol=1e-3)


def test_b_dec_starts_where_it_is_told_to():
    starts = {
        kind: np.asarray(start(SAEConfig(D_SAE, K, b_dec_init=kind))[1].params["b_dec"])
        for kind in ("uniform", "zeros", "mean", "geometric_median")
    }
    assert not starts["zeros"].any()
    assert 0 < np.abs(starts["uniform"]).max() <= 1 / np.sqrt(D_SAE)
    np.testing.assert_allclose(starts["mean"], X.mean(0), rtol=1e-6)
    found = scipy.optimize.minimize(
        lambda m: np.linalg.norm(X.astype(np.float64) - m, axis=1).sum(),
        X.mean(0, dtype=np.float64),
        tol=1e-12,
    )
    np.testing.assert_allclose(starts["geometric_median"], found.x, atol=2e-3)
    assert np.abs(found.x - X.mean(0)).max() > 0.05


def test_the_geometric_median_of_a_sample_that_is_it():
    x = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    np.testing.assert_allclose(geometric_median(x), 0, atol=1e-6)


def test_a_tied_start():
    for preset, norm in ((None, 1.0), ("saelens", 0.1)):
        params = start(SAEConfig(D_SAE, K, tied_init=True, preset=preset))[1].params
        np.testing.assert_array_equal(params["w_enc_t"], params["w_dec"])
        np.testing.assert_allclose(np.linalg.norm(params["w_dec"], axis=1), norm, rtol=1e-5)
        assert not params["b_enc"].any()
    assert not np.allclose(start(SAEConfig(D_SAE, K))[1].params["w_enc_t"], params["w_dec"])


def test_unit_rows_and_no_gradient_along_them():
    config = SAEConfig(D_SAE, K, unit_decoder=True, learning_rate=0.05)
    rows = steps(config, 3)[-1]["w_dec"]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    free = steps(SAEConfig(D_SAE, K, learning_rate=0.05), 3)[-1]["w_dec"]
    assert np.abs(np.linalg.norm(free, axis=1) - 1).max() > 1e-2
    # With plain gradient descent, which adds up gradients as they are, by hand.
    program, state, hyper = start(config)
    program = Program(config.template, optimizer=optax.sgd)
    state = state._replace(opt_state=optax.sgd(0.05).init(state.params))
    x = jnp.asarray(X)
    batch = Batch(x, x, jnp.ones(D_SAE, bool), jnp.int32(0))
    gradient = jax.grad(
        lambda p: merge(config.template, p, {}, hyper).loss(batch, hyper, program.bound_kernel())
    )(state.params)["w_dec"]
    before = np.asarray(state.params["w_dec"], np.float64)
    across = gradient - (gradient * before).sum(1, keepdims=True) * before
    moved = before - 0.05 * across
    want = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    after, _ = train_step(program, state, hyper, Samples(x), jnp.int32(0))
    np.testing.assert_allclose(after.params["w_dec"], want, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "schedule"),
    [
        ({"warmup_steps": 4}, lambda t: min((t + 1) / 4, 1.0)),
        ({"decay_steps": 5}, lambda t: min((STEPS - t) / 5, 1.0)),
        (
            {"warmup_steps": 4, "decay_steps": 5},
            lambda t: min((t + 1) / 4, 1.0) * min((STEPS - t) / 5, 1.0),
        ),
    ],
    ids=["warm-up", "decay", "both"],
)
def test_the_learning_rate_follows_its_schedule(fields, schedule):
    factors = jnp.array([schedule(t) for t in range(STEPS)], jnp.float32)

    def scheduled(rate):
        return optax.chain(adam(rate), optax.scale_by_schedule(lambda t: factors[t]))

    config = SAEConfig(D_SAE, K)
    want = sae_jax.train_sweep(
        [config], X, X, TrainConfig(**RUN), optimizer=scheduled, progress=False
    ).members[0]
    got = member(**fields)
    assert_same(got.params, want.params, rtol=1e-4, atol=1e-5)
    assert not np.allclose(got.losses, member().losses)


def test_gradients_are_clipped():
    def clipped(rate):
        return optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate))

    runs = [
        sae_jax.train_sweep(
            [SAEConfig(D_SAE, K, **fields)],
            X,
            X,
            TrainConfig(**RUN),
            optimizer=optimizer,
            progress=False,
        ).members[0]
        for fields, optimizer in (({"clip_norm": 0.5}, optax.sgd), ({}, clipped), ({}, optax.sgd))
    ]
    assert_same(runs[0].params, runs[1].params, rtol=1e-4, atol=1e-5)
    assert not np.allclose(runs[0].params["w_dec"], runs[2].params["w_dec"], atol=1e-4)


def test_k_falls_in_a_straight_line():
    config = SAEConfig(D_SAE, K, k_anneal_steps=4)
    _, _, hyper = start(config)
    # From the width 12, which is less than 24 latents, to 4 in 4 steps.
    assert [int(annealed_k(hyper, D_IN, jnp.int32(t))) for t in range(6)] == [12, 10, 8, 6, 4, 4]
    # A step at k = 12 is what the first one is.
    first = steps(SAEConfig(D_SAE, 12), 1)[0]
    assert_same(steps(config, 1)[0], first, rtol=1e-5, atol=1e-6)
    assert member(k_anneal_steps=4).metrics["l0"] == pytest.approx(K)


def test_the_average_of_the_parameters_is_returned():
    config = SAEConfig(D_SAE, K, weight_average=0.8)
    train_config = TrainConfig(**RUN)
    program, state, hyper = start(config)
    source = InMemory(X, BATCH_SIZE, Placement.default())
    average = {name: np.asarray(a, np.float64) for name, a in state.params.items()}
    t = 0
    for epoch in range(train_config.epochs):
        full, rest = source.epoch(0, epoch)
        for x in (*full.x, rest.x):
            state, _ = train_step(program, state, hyper, Samples(x), jnp.int32(t))
            decay = min(0.8, (1 + t) / (10 + t))
            average = {
                n: decay * a + (1 - decay) * np.asarray(state.params[n]) for n, a in average.items()
            }
            t += 1
    got = member(weight_average=0.8).params
    np.testing.assert_allclose(got["w_dec"], average["w_dec"], atol=1e-4)
    np.testing.assert_allclose(got["w_enc"].T, average["w_enc_t"], atol=1e-4)
    assert np.abs(got["w_dec"] - member().params["w_dec"]).max() > 1e-3


@pytest.mark.parametrize(("part", "name"), [("decoder", "w_dec"), ("encoder", "w_enc")])
def test_a_frozen_matrix_stays_as_it_was_drawn(part, name):
    got, other = member(frozen=part), member()
    drawn = start(SAEConfig(D_SAE, K))[1].params
    drawn = {"w_dec": drawn["w_dec"], "w_enc": drawn["w_enc_t"].T}
    for matrix in ("w_dec", "w_enc"):
        same = np.array_equal(got.params[matrix], drawn[matrix])
        assert same == (matrix == name)
        assert not np.array_equal(other.params[matrix], drawn[matrix])


def test_transcoders_predict_their_targets():
    rng = np.random.default_rng(0)
    y = (X @ rng.normal(size=(D_IN, 5)) / np.sqrt(D_IN) + 2.0).astype(np.float32)
    config = SAEConfig(D_SAE, K, learning_rate=0.01)
    for normalize in ("none", "center_and_scale"):
        (found,) = sae_jax.train_sweep(
            [sae_jax.SAEConfig(D_SAE, K, learning_rate=0.01, normalize=normalize)],
            X,
            X,
            TrainConfig(epochs=40, batch_size=32),
            targets=y,
            val_targets=y,
            progress=False,
        ).members
        sae = found.sae()
        assert (sae.d_in, sae.d_out) == (D_IN, 5)
        error = np.mean(np.sum((np.asarray(sae(X)) - y) ** 2, axis=1))
        fvu = error / np.mean(np.sum((y - y.mean(0)) ** 2, axis=1))
        assert found.metrics["fvu"] == pytest.approx(fvu, rel=1e-3)
        assert fvu < 0.35
    # Targets that are the samples change nothing.
    same = sae_jax.train_sweep(
        [config], X, X, TrainConfig(**RUN), targets=X, val_targets=X, progress=False
    ).members[0]
    (plain,) = quietly([config], X, X, **RUN).members
    np.testing.assert_array_equal(same.losses, plain.losses)


def test_crosscoders_weigh_their_layers():
    both = sae_jax.side_by_side(X, 2 * X[:, ::-1])
    assert both.shape == (len(X), 2 * D_IN)
    weights = np.repeat(np.sqrt([4.0, 0.25]), D_IN).astype(np.float32)
    config = SAEConfig(D_SAE, K)
    weighed = sae_jax.train_sweep(
        [config],
        both,
        both,
        TrainConfig(**RUN),
        targets=both,
        val_targets=both,
        target_weights=[4.0, 0.25],
        progress=False,
    )
    by_hand = sae_jax.train_sweep(
        [config],
        both,
        both,
        TrainConfig(**RUN),
        targets=both * weights,
        val_targets=both * weights,
        progress=False,
    )
    np.testing.assert_allclose(weighed.members[0].losses, by_hand.members[0].losses, rtol=1e-4)
    np.testing.assert_allclose(
        weighed.sae(0)(both), np.asarray(by_hand.sae(0)(both)) / weights, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({}, {"targets": X}, "val_targets is None; expected both"),
        ({}, {"targets": X[:5], "val_targets": X}, "targets has 5 rows; expected 200"),
        ({}, {"target_weights": [1.0]}, "target_weights is given without targets"),
        (
            {},
            {"targets": X, "val_targets": X, "target_weights": [1, 2, 3, 4, 5]},
            "has 5 entries; expected a divisor of the targets' width 12",
        ),
        ({}, {"targets": X, "val_targets": X, "target_weights": [1, 0]}, "allowed are positive"),
        ({"center_input": True}, {"targets": X, "val_targets": X}, "has center_input"),
        ({"normalize": "layer_norm"}, {"targets": X, "val_targets": X}, "normalize='layer_norm'"),
        ({"tied_init": True}, {"targets": X[:, :3], "val_targets": X[:, :3]}, "has tied_init"),
    ],
)
def test_refused_targets(fields, arguments, message):
    with pytest.raises(ValueError, match=message):
        sae_jax.train_sweep([SAEConfig(D_SAE, K, **fields)], X, X, progress=False, **arguments)


def test_the_offset_severity_is_in_the_table():
    severity = np.linalg.norm(X.mean(0)) / np.linalg.norm(X.std(0))
    assert member().row()["offset_severity"] == pytest.approx(severity, rel=1e-5)
