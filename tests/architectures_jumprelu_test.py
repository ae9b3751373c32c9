"""JumpReLU's training against straight-through estimators by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from penalized import (
    assert_padding_is_nothing,
    batch_of,
    hyper_of,
    loss_and_gradients,
    trained_arrays,
)
from random_saes import random_params, samples

from sae_jax import JumpReLUSAE, SAEConfig
from sae_jax.architectures.functional import initial, merge
from sae_jax.architectures.jumprelu import jump, step

D_IN, D_SAE, EPS, WEIGHT = 8, 24, 0.4, 0.7
CONFIG = SAEConfig(
    D_SAE, architecture="jumprelu", sparsity_coefficient=WEIGHT, bandwidth=EPS, threshold_init=0.1
)
PRESETS = [None, "saelens", "dictionary_learning"]


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    threshold = rng.uniform(0.0, 0.5, D_SAE).astype(np.float32)
    return random_params(seed, D_IN, D_SAE) | {"threshold": threshold}


def by_hand(p, x, kind, *, to_input, jumped=False):
    """Loss and gradients in NumPy, float64.

    Args:
      kind: "step", "tanh", "each" (quadratic in each sample) or "mean" (in the batch's).
      to_input: whether estimators give their derivative to pre-activations too.
      jumped: whether what fires is counted among latents, after the jump.
    """
    p = {name: np.asarray(array, np.float64) for name, array in p.items()}
    x = x.astype(np.float64)
    n, theta, target = len(x), p["threshold"], 4.0
    pre = x @ p["w_enc"] + p["b_enc"]
    open_ = (pre > theta).astype(np.float64)
    f = pre * open_
    window = np.abs(pre - theta) < EPS / 2
    y = f @ p["w_dec"] + p["b_dec"]
    norms = np.linalg.norm(p["w_dec"], axis=1)

    counted = f if jumped else pre
    fires = (counted > theta).astype(np.float64)
    counted_window = np.abs(counted - theta) < EPS / 2
    l0 = fires.sum(1)
    zero = np.zeros_like(pre)
    d_fires, d_f, d_norms = zero, zero, 0.0 * norms
    if kind == "step":
        penalty, d_fires = l0.mean(), zero + 1.0 / n
    elif kind == "each":
        penalty = (2.0 / target * (l0 - target) ** 2).mean()
        d_fires = zero + (4.0 / target * (l0 - target) / n)[:, None]
    elif kind == "mean":
        penalty = (l0.mean() / target - 1.0) ** 2
        d_fires = zero + 2.0 * (l0.mean() / target - 1.0) / target / n
    else:
        t = np.tanh(4.0 * f * norms)
        penalty = t.sum(1).mean()
        d_f = (1.0 - t**2) * 4.0 * norms / n
        d_norms = ((1.0 - t**2) * 4.0 * f).sum(0) / n
    loss = ((y - x) ** 2).sum(1).mean() + WEIGHT * penalty

    d_y = 2.0 * (y - x) / n
    d_f = WEIGHT * d_f + d_y @ p["w_dec"].T
    by_jump = theta / EPS * window * d_f
    by_step = WEIGHT * d_fires * counted_window / EPS
    d_pre = open_ * d_f + (by_jump + by_step if to_input else 0.0)
    directions = p["w_dec"] / norms[:, None]
    return loss, {
        "threshold": -(by_jump + by_step).sum(0),
        "w_enc_t": d_pre.T @ x,
        "b_enc": d_pre.sum(0),
        "w_dec": f.T @ d_y + WEIGHT * d_norms[:, None] * directions,
        "b_dec": d_y.sum(0),
    }


@pytest.mark.parametrize(
    ("fields", "kind", "to_input", "jumped"),
    [
        ({}, "step", True, False),
        ({"sparsity_loss": "tanh"}, "tanh", True, False),
        ({"preset": "saelens"}, "step", False, False),
        ({"preset": "saelens", "sparsity_loss": "tanh"}, "tanh", False, False),
        ({"preset": "saelens", "target_l0": 4.0}, "each", False, False),
        ({"preset": "dictionary_learning", "target_l0": 4.0}, "mean", False, True),
    ],
)
def test_loss_and_gradients_equal_formulas(fields, kind, to_input, jumped):
    config = dataclasses.replace(CONFIG, **fields)
    p, x = parameters(), samples(1, D_IN)
    arrays, kept = trained_arrays(config, p)
    loss, gradients, _ = loss_and_gradients(config, arrays, kept, batch_of(x, D_SAE))
    expected, theirs = by_hand(p, x, kind, to_input=to_input, jumped=jumped)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert sorted(gradients) == sorted(theirs)
    for name, gradient in theirs.items():
        assert np.any(gradient), name
        close = {"rtol": 1e-4, "atol": 1e-5 * np.abs(gradient).max()}
        np.testing.assert_allclose(gradients[name], gradient, **close, err_msg=name)


def test_estimators_have_a_rectangular_window():
    pre = jnp.array([[-1.0, 0.31, 0.49, 0.5, 0.51, 0.69, 2.0]])
    threshold, bandwidth = jnp.full((1, 7), 0.5), jnp.float32(0.4)

    def latents(pre, threshold):
        fires = step(pre - threshold, bandwidth)
        return jump(pre, threshold, fires), fires

    (f, fires), pull = jax.vjp(latents, pre, threshold)
    np.testing.assert_array_equal(fires[0], [0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(f, np.where(fires, pre, 0.0))
    zeros, ones = jnp.zeros_like(f), jnp.ones_like(f)
    window = np.array([0, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(pull((zeros, ones))[1][0], -window / 0.4, rtol=1e-6)
    np.testing.assert_allclose(pull((ones, zeros))[1][0], -window * 0.5 / 0.4, rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_is_nothing(preset):
    config = dataclasses.replace(CONFIG, preset=preset, target_l0=3.0)
    arrays, kept = trained_arrays(config, parameters())
    # A window that holds 0, where padding's pre-activations are.
    config = dataclasses.replace(config, bandwidth=0.5)
    assert_padding_is_nothing(config, arrays, kept, samples(1, D_IN), 40)


def test_dictionary_learning_counts_what_is_silent_below_a_threshold_of_zero():
    config = dataclasses.replace(CONFIG, preset="dictionary_learning", target_l0=1.0)
    p = parameters() | {"threshold": np.full(D_SAE, -0.1, np.float32)}
    p["b_enc"] = np.full(D_SAE, -1e3, np.float32)
    arrays, kept = trained_arrays(config, p)
    loss, gradients, _ = loss_and_gradients(config, arrays, kept, batch_of(samples(), D_SAE))
    error = np.mean(np.sum((p["b_dec"] - samples()) ** 2, axis=1))
    np.testing.assert_allclose(loss - error, WEIGHT * (D_SAE - 1.0) ** 2, rtol=1e-3)
    assert np.all(gradients["threshold"] < 0.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_thresholds_start_and_stay_where_they_may(preset):
    config = dataclasses.replace(CONFIG, preset=preset)
    arrays, _ = initial(config.template, hyper_of(config), jnp.zeros(D_IN), D_IN, 30)
    np.testing.assert_allclose(arrays["threshold"], 0.1)
    arrays["threshold"] = jnp.linspace(-1.0, 1.0, 30)
    found = JumpReLUSAE.allowed(arrays, config.template)["threshold"]
    kept = preset == "dictionary_learning"
    np.testing.assert_array_equal(
        found, arrays["threshold"] if kept else np.maximum(arrays["threshold"], 0.0)
    )


def test_an_sae_that_takes_raw_samples_fires_on_the_same():
    p, x = parameters(), samples(1, D_IN)
    mean, scale = np.arange(D_IN, dtype=np.float32), np.float32(3.0)
    arrays, kept = trained_arrays(CONFIG, p)
    sae = merge(CONFIG.template, arrays, kept, hyper_of(CONFIG))
    rows = np.full(D_IN, scale)
    folded = JumpReLUSAE.fold(arrays, CONFIG, mean, scale, mean, rows)
    raw = merge(CONFIG.template, folded, kept, hyper_of(CONFIG))
    changed = x * scale + mean
    np.testing.assert_allclose(
        raw.encode(changed), np.asarray(sae.encode(x)) * scale, rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(
        raw(changed), np.asarray(sae(x)) * scale + mean, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"preset": "dictionary_learning", "sparsity_loss": "tanh"},
            "sparsity_loss is 'tanh'; allowed is 'step'",
        ),
        (
            {"preset": "saelens", "sparsity_loss": "tanh", "target_l0": 3},
            "target_l0 is 3.0; allowed is None",
        ),
    ],
)
def test_presets_refuse_what_their_library_has_not(fields, message):
    with pytest.raises(ValueError, match=message):
        JumpReLUSAE.check(dataclasses.replace(CONFIG, **fields))


@pytest.mark.parametrize(
    ("preset", "coefficient", "bandwidth", "threshold", "target"),
    [
        ("saelens", 1.0, 0.05, 0.01, None),
        ("dictionary_learning", 1.0, 0.001, 0.001, 20.0),
        (None, 25.0, 10.0, 5.0, 3.0),
    ],
)
def test_what_is_left_open_is_filled(preset, coefficient, bandwidth, threshold, target):
    config = SAEConfig(
        D_SAE, architecture="jumprelu", preset=preset, target_l0=None if preset else 3.0
    )
    full = JumpReLUSAE.fill(config, 5.0, 1000, D_IN, 32)
    assert full == dataclasses.replace(
        config,
        sparsity_coefficient=coefficient,
        bandwidth=bandwidth,
        threshold_init=threshold,
        target_l0=target,
    )
    JumpReLUSAE.check(full)
