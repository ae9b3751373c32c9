"""ReLU SAEs against formulas in NumPy and PyTorch, and the controller of a target L0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from penalized import (
    assert_padding_is_nothing,
    batch_of,
    hyper_of,
    loss_and_gradients,
    trained_arrays,
)
from random_saes import random_params, samples

from sae_jax import SAEConfig
from sae_jax.architectures.functional import initial
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.relu import ReLUSAE
from sae_jax.architectures.target_l0 import LogWeight
from sae_jax.sweep.batches import Samples
from sae_jax.sweep.step import MemberState, Program, train_step

D_IN, D_SAE = 8, 24
CONFIG = SAEConfig(D_SAE, architecture="relu", sparsity_coefficient=0.3)


def torch_loss(params, x, coefficient, *, norms=True, center=False):
    tensors = {
        name: torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for name, array in params.items()
    }
    x = torch.tensor(x, dtype=torch.float64)
    inputs = x - tensors["b_dec"] if center else x
    f = torch.relu(inputs @ tensors["w_enc"] + tensors["b_enc"])
    x_hat = f @ tensors["w_dec"] + tensors["b_dec"]
    sizes = f * tensors["w_dec"].norm(dim=1) if norms else f
    loss = ((x_hat - x) ** 2).sum(1).mean() + coefficient * sizes.sum(1).mean()
    loss.backward()
    gradients = {name: tensor.grad.numpy() for name, tensor in tensors.items()}
    gradients["w_enc_t"] = gradients.pop("w_enc").T
    return loss.item(), gradients


def assert_equal(found, expected):
    assert sorted(found) == sorted(expected)
    for name, gradient in expected.items():
        close = {"rtol": 1e-5, "atol": 1e-5 * np.abs(gradient).max()}
        np.testing.assert_allclose(found[name], gradient, **close, err_msg=name)


@pytest.mark.parametrize(
    ("fields", "norms"),
    [
        ({}, True),
        ({"preset": "saelens"}, True),
        ({"preset": "dictionary_learning"}, True),
        ({"preset": "dictionary_learning", "unit_decoder": True}, False),
        ({"center_input": True}, True),
    ],
)
def test_loss_and_gradients_equal_pytorch(fields, norms):
    config = dataclasses.replace(CONFIG, **fields)
    params, x = random_params(0, D_IN, D_SAE), samples(1, D_IN)
    arrays, kept = trained_arrays(config, params)
    loss, gradients, _ = loss_and_gradients(config, arrays, kept, batch_of(x, D_SAE))
    expected, theirs = torch_loss(params, x, 0.3, norms=norms, center=config.center_input)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_equal(gradients, theirs)


def test_latents_are_those_of_a_relu():
    params, x = random_params(0, D_IN, D_SAE), samples(1, D_IN)
    expected = np.maximum(x.astype(float) @ params["w_enc"] + params["b_enc"], 0.0)
    sae = ReLUSAE.from_params(params, CONFIG)
    np.testing.assert_allclose(sae.encode(x), expected, rtol=1e-5, atol=1e-5)


def test_padding_is_nothing():
    config = dataclasses.replace(CONFIG, target_l0=3.0)
    arrays, kept = trained_arrays(config, random_params(0, D_IN, D_SAE))
    assert_padding_is_nothing(config, arrays, kept, samples(1, D_IN), 40)


def test_the_penalty_grows_over_its_warm_up():
    config = dataclasses.replace(CONFIG, sparsity_warmup_steps=10)
    arrays, kept = trained_arrays(config, random_params(0, D_IN, D_SAE))
    x = samples(1, D_IN)
    losses = [
        loss_and_gradients(config, arrays, kept, batch_of(x, D_SAE, step=step))[0]
        for step in (0, 5, 10, 20)
    ]
    full, none = losses[2], losses[0]
    error = torch_loss(random_params(0, D_IN, D_SAE), x, 0.0)[0]
    np.testing.assert_allclose(none, error, rtol=1e-5)
    np.testing.assert_allclose(losses[1], (full + none) / 2, rtol=1e-5)
    assert losses[3] == full > none


def test_the_controller_adds_errors_up_and_damps():
    config = dataclasses.replace(CONFIG, sparsity_coefficient=2.0, target_l0=10.0)
    weight = LogWeight.start(hyper_of(config))
    found = [
        float(weight.adapt(jnp.float32(l0), hyper_of(config), 1.0)) for l0 in (10.0, 11.0, 1000.0)
    ]
    added = 0.05 * np.log(1.1)
    # By hand: 2 * exp(sum + error), with errors of 0, log 1.1, and the most that counts.
    expected = [2.0, 2.0 * np.exp(added) * 1.1, 2.0 * np.exp(added + 0.05 * 0.3 + 1.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(weight[...], np.log(2.0) + added + 0.015, rtol=1e-5)


def test_a_batch_in_which_nothing_fires_lowers_the_weight():
    config = dataclasses.replace(CONFIG, target_l0=10.0)
    weight = LogWeight.start(hyper_of(config))
    assert 0.0 < weight.adapt(jnp.float32(0.0), hyper_of(config), 1.0) < 0.3
    assert np.isfinite(weight[...])


def sparse_samples(scale, offset=0.0, n=1024, d_in=16):
    """Samples of sparse codes in a random dictionary."""
    rng = np.random.default_rng(0)
    codes = (rng.random((n, 32)) < 0.1) * rng.exponential(size=(n, 32))
    dictionary = rng.normal(size=(32, d_in)) / np.sqrt(d_in)
    return (scale * (codes @ dictionary + offset)).astype(np.float32)


def train(config, x, num_steps, batch_size=128):
    """Arrays after training on samples, and the filled config."""
    scale = float(np.sqrt(np.mean((x - x.mean(0)) ** 2)))
    config = architecture_of(config).fill(config, scale, len(x), x.shape[1], batch_size)
    hyper = hyper_of(config)
    program = Program(config.template)
    center = jnp.asarray(x.mean(0))
    params, kept = initial(config.template, hyper, center, x.shape[1], config.d_sae)
    state = MemberState(params, kept, program.optimizer(hyper.learning_rate).init(params), {})
    batches = jnp.asarray(x.reshape(-1, batch_size, x.shape[1]))

    @jax.jit
    def run(state):
        def step(state, i):
            return train_step(program, state, hyper, Samples(batches[i % len(batches)]), i)

        return jax.lax.scan(step, state, jnp.arange(num_steps))

    return run(state)[0].params, config


def mean_l0(params, config, x):
    arrays = {name: np.asarray(array) for name, array in params.items()}
    arrays = architecture_of(config).of_true_size(arrays, config.d_sae)
    return float(
        (np.asarray(architecture_of(config).from_params(arrays, config).encode(x)) > 0)
        .sum(1)
        .mean()
    )


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_target_is_reached_whatever_the_units(architecture, scale):
    x = sparse_samples(scale, offset=1.0)
    config = SAEConfig(
        48,
        architecture=architecture,
        target_l0=4.0,
        learning_rate=3e-3,
        center_input=True,
        b_dec_init="mean",
    )
    params, config = train(config, x, 500)
    assert mean_l0(params, config, x) == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_units_of_the_samples_do_not_matter(architecture):
    found = []
    for scale in (1.0, 64.0):
        x = sparse_samples(scale)
        config = SAEConfig(48, architecture=architecture, target_l0=6.0, b_dec_init="zeros")
        params, config = train(config, x, 30)
        found.append({name: np.asarray(array) for name, array in params.items()})
    for name in found[0]:
        unit = 1.0 if name in ("w_enc_t", "w_dec", "r_mag") else 64.0
        np.testing.assert_allclose(
            found[1][name], found[0][name] * unit, rtol=0.02, atol=0.01 * unit, err_msg=name
        )


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "sparsity_coefficient is None; .* without a preset needs a positive number, or"),
        ({"k": 3, "target_l0": 3}, "k is 3; allowed is None"),
        (
            {"prefix_fractions": (0.5, 1.0), "target_l0": 3},
            "prefix_fractions is .* allowed is None",
        ),
        ({"aux_coefficient": 0.1, "target_l0": 3}, "aux_coefficient is 0.1; allowed is 0.0"),
        ({"aux_k": 3, "target_l0": 3}, "aux_k is 3; allowed is None"),
        ({"dead_after": 3, "preset": "saelens"}, "dead_after is 3; allowed is None"),
        (
            {"target_l0": 3, "sparsity_warmup_steps": 9},
            "sparsity_warmup_steps is 9 beside target_l0",
        ),
    ],
)
def test_configs_that_no_member_can_have_are_refused(architecture, fields, message):
    config = SAEConfig(D_SAE, architecture=architecture, **fields)
    with pytest.raises(ValueError, match=message):
        architecture_of(config).check(config)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bandwidth": 0.1}, "bandwidth is 0.1; allowed is None"),
        ({"threshold_init": 0.1}, "threshold_init is 0.1; allowed is None"),
        ({"sparsity_loss": "tanh"}, "sparsity_loss is 'tanh'; allowed is 'step'"),
        ({"preset": "saelens"}, "target_l0 is 3.0; allowed is None for .* with preset 'saelens'"),
    ],
)
def test_what_only_jumprelu_has_is_refused(architecture, fields, message):
    config = SAEConfig(D_SAE, architecture=architecture, target_l0=3, **fields)
    with pytest.raises(ValueError, match=message):
        architecture_of(config).check(config)


@pytest.mark.parametrize(
    ("fields", "coefficient"),
    [
        ({"preset": "saelens"}, 1.0),
        ({"preset": "dictionary_learning"}, 0.1),
        ({"target_l0": 3}, 5.0),
        ({"target_l0": 3, "sparsity_coefficient": 0.7}, 0.7),
    ],
)
def test_what_is_left_open_is_filled(fields, coefficient):
    for architecture in ("relu", "gated"):
        config = SAEConfig(D_SAE, architecture=architecture, **fields)
        full = architecture_of(config).fill(config, 5.0, 1000, D_IN, 32)
        assert full == dataclasses.replace(config, sparsity_coefficient=coefficient)
        architecture_of(config).check(full)
