"""Gated SAEs against PyTorch."""

import dataclasses

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
from random_saes import random_gates, random_params, samples

from sae_jax import SAEConfig
from sae_jax.architectures.functional import merge
from sae_jax.architectures.gated import GatedSAE

D_IN, D_SAE, WEIGHT = 8, 24, 0.3
CONFIG = SAEConfig(D_SAE, architecture="gated", sparsity_coefficient=WEIGHT)


def parameters(seed=0):
    gates = random_gates(seed, D_SAE)
    return random_params(seed, D_IN, D_SAE) | {name: gates[name] for name in ("b_mag", "r_mag")}


def torch_latents(p, x, center):
    h = (x - p["b_dec"] if center else x) @ p["w_enc"]
    gate = h + p["b_enc"]
    magnitude = h * p["r_mag"].exp() + p["b_mag"]
    return (gate > 0) * magnitude.relu(), gate.relu()


def torch_loss_and_gradients(params, x, preset, center):
    """As Rajamanoharan et al. 2024 write it, and each library, in float64."""
    p = {
        name: torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for name, array in params.items()
    }
    x = torch.tensor(x, dtype=torch.float64)
    f, opened = torch_latents(p, x, center)
    norms = p["w_dec"].norm(dim=1)
    w_dec, b_dec = p["w_dec"], p["b_dec"]
    if preset != "saelens":
        w_dec, b_dec = w_dec.detach(), b_dec.detach()
    if preset is None:  # A row's direction is the decoder's, its norm the encoder's.
        w_dec = w_dec / w_dec.norm(dim=1, keepdim=True) * norms[:, None]
    sizes = opened if preset == "dictionary_learning" else opened * norms
    loss = (
        ((f @ p["w_dec"] + p["b_dec"] - x) ** 2).sum(1).mean()
        + ((opened @ w_dec + b_dec - x) ** 2).sum(1).mean()
        + WEIGHT * sizes.sum(1).mean()
    )
    loss.backward()
    gradients = {name: tensor.grad.numpy() for name, tensor in p.items()}
    gradients["w_enc_t"] = gradients.pop("w_enc").T
    return loss.item(), gradients


@pytest.mark.parametrize("preset", [None, "saelens", "dictionary_learning"])
@pytest.mark.parametrize("center", [False, True])
def test_loss_and_gradients_equal_pytorch(preset, center):
    config = dataclasses.replace(CONFIG, preset=preset, center_input=center)
    p, x = parameters(), samples(1, D_IN)
    arrays, kept = trained_arrays(config, p)
    loss, gradients, _ = loss_and_gradients(config, arrays, kept, batch_of(x, D_SAE))
    expected, theirs = torch_loss_and_gradients(p, x, preset, center)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert sorted(gradients) == sorted(theirs)
    for name, gradient in theirs.items():
        assert np.any(gradient), name
        close = {"rtol": 1e-4, "atol": 1e-5 * np.abs(gradient).max()}
        np.testing.assert_allclose(gradients[name], gradient, **close, err_msg=name)


@pytest.mark.parametrize("center", [False, True])
def test_latents_equal_pytorch(center):
    config = dataclasses.replace(CONFIG, center_input=center)
    p, x = parameters(), samples(1, D_IN)
    tensors = {name: torch.tensor(array, dtype=torch.float64) for name, array in p.items()}
    expected, _ = torch_latents(tensors, torch.tensor(x, dtype=torch.float64), center)
    assert 0.1 < (expected > 0).double().mean() < 0.9
    found = GatedSAE.from_params(p, config).encode(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_padding_is_nothing():
    config = dataclasses.replace(CONFIG, target_l0=3.0)
    arrays, kept = trained_arrays(config, parameters())
    assert_padding_is_nothing(config, arrays, kept, samples(1, D_IN), 40)


@pytest.mark.parametrize("center", [False, True])
def test_an_sae_that_takes_raw_samples_fires_on_the_same(center):
    config = dataclasses.replace(CONFIG, center_input=center)
    p, x = parameters(), samples(1, D_IN)
    mean, scale = np.arange(D_IN, dtype=np.float32), np.float32(3.0)
    arrays, kept = trained_arrays(config, p)
    sae = merge(config.template, arrays, kept, hyper_of(config))
    folded = GatedSAE.fold(arrays, config, mean, scale, mean, np.full(D_IN, scale))
    raw = merge(config.template, folded, kept, hyper_of(config))
    changed = x * scale + mean
    np.testing.assert_allclose(
        raw.encode(changed), np.asarray(sae.encode(x)) * scale, rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(
        raw(changed), np.asarray(sae(x)) * scale + mean, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("name", ["b_mag", "r_mag"])
def test_gates_of_another_width_are_refused(name):
    p = parameters() | {name: np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\); expected \(24,\)"):
        GatedSAE.from_params(p, CONFIG)
