"""Matryoshka against NumPy: an error for every nested prefix, with traced sizes."""

import dataclasses

import numpy as np
import pytest
from parity import member
from random_saes import random_params
from sweeps import samples

from sae_jax import SAEConfig, TrainConfig, train_sweep
from sae_jax.architectures.registry import architecture_of

D_IN, D_SAE, K, BATCH = 8, 24, 3, 16


def config(fractions, preset=None):
    return SAEConfig(D_SAE, K, architecture="matryoshka", preset=preset, prefix_fractions=fractions)


def prefix_errors(params, x, sizes, preset):
    """|x - x_hat|^2 of each prefix, averaged over samples and summed over D, in float64."""
    p = {name: array.astype(np.float64) for name, array in params.items()}
    norms = np.linalg.norm(p["w_dec"], axis=1) if preset == "saelens" else np.ones(D_SAE)
    ranked = np.maximum((x @ p["w_enc"] + p["b_enc"]) * norms, 0.0)
    smallest = np.sort(ranked, axis=None)[-K * BATCH]
    z = np.where(ranked >= smallest, ranked, 0.0) / norms
    return np.array(
        [np.mean(np.sum((z[:, :m] @ p["w_dec"][:m] + p["b_dec"] - x) ** 2, axis=1)) for m in sizes]
    )


@pytest.mark.parametrize(
    ("preset", "weight"),
    [
        (None, lambda n: 1 / (n * D_IN)),
        ("saelens", lambda n: 1.0),
        ("dictionary_learning", lambda n: 1 / n**2),
    ],
)
@pytest.mark.parametrize(
    ("fractions", "sizes"),
    [((1.0,), (24,)), ((0.25, 1.0), (6, 24)), ((1 / 24, 0.5, 0.75, 1.0), (1, 12, 18, 24))],
)
def test_loss_adds_up_the_errors_of_prefixes(preset, weight, fractions, sizes):
    params = random_params(0, D_IN, D_SAE)
    x = samples(BATCH, D_IN)
    loss, gradients = member(config(fractions, preset), params, BATCH).gradients(x, 0)
    expected = weight(len(sizes)) * np.sum(prefix_errors(params, x, sizes, preset))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # By b_dec every error has the derivative of a mean.
    step = 1e-3
    for i in range(D_IN):
        moved = [
            np.sum(
                prefix_errors(
                    params | {"b_dec": params["b_dec"] + sign * step * np.eye(D_IN)[i]},
                    x,
                    sizes,
                    preset,
                )
            )
            for sign in (1, -1)
        ]
        slope = weight(len(sizes)) * (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(gradients["b_dec"][i], slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bounds", [(6, 12, 24), (7, 20, 24)])
def test_bounds_of_the_sizes_change_no_step(bounds):
    one = member(config((0.25, 0.5, 1.0)), random_params(0, D_IN, D_SAE), BATCH)
    batches = [samples(BATCH, D_IN, seed=i) for i in range(5)]
    expected, losses = one.stepped(batches, 0)
    program = dataclasses.replace(one.program, prefix_bounds=bounds)
    bounded, found = one._replace(program=program).stepped(batches, 0)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    for name, array in expected.arrays().items():
        np.testing.assert_allclose(bounded.arrays()[name], array, atol=1e-6)


def test_a_sweep_knows_the_bounds_of_its_members():
    # Side by side, the member of larger prefixes first and last.
    x = samples(4 * BATCH, D_IN)
    settings = {"train_config": TrainConfig(epochs=2, batch_size=BATCH), "progress": False}
    for fractions in ([(0.25, 0.5, 1.0), (0.5, 0.6, 1.0)], [(0.5, 0.6, 1.0), (0.25, 0.7, 1.0)]):
        members = [config(one) for one in fractions]
        together = train_sweep(members, x, x, **settings)
        for alone, trained in zip(members, together.members, strict=True):
            solo = train_sweep([alone], x, x, **settings).members[0]
            np.testing.assert_allclose(trained.losses, solo.losses, rtol=1e-5)


def test_one_prefix_is_batch_topk():
    params = random_params(0, D_IN, D_SAE)
    x = samples(BATCH, D_IN)
    plain = SAEConfig(D_SAE, K, architecture="batch_topk")
    loss, gradients = member(config((1.0,)), params, BATCH).gradients(x, 0)
    expected, plain_gradients = member(plain, params, BATCH).gradients(x, 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for name, gradient in plain_gradients.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_prefixes_of_other_sizes_share_a_template():
    assert config((0.25, 1.0)).template == config((0.5, 1.0)).template
    assert config((0.25, 1.0)).template != config((0.25, 0.5, 1.0)).template


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 3}, "prefix_fractions is None; matryoshka needs numbers that grow to 1"),
        ({"prefix_fractions": (0.5, 1.0)}, "k is None; matryoshka needs 1 to d_sae = 24"),
        (
            {"k": 3, "prefix_fractions": (0.5, 1.0), "target_l0": 4.0},
            "target_l0 is 4.0; allowed is None for matryoshka",
        ),
    ],
)
def test_fields_missing_or_without_use_are_refused(fields, message):
    one = SAEConfig(24, architecture="matryoshka", **fields)
    with pytest.raises(ValueError, match=message):
        architecture_of(one).check(one)


@pytest.mark.parametrize("fractions", [(0.5, 0.25, 1.0), (0.5, 0.5, 1.0), (0.5,), (0.001, 1.0), ()])
def test_prefixes_that_do_not_grow_to_one_are_refused(fractions):
    with pytest.raises(ValueError, match="prefix_fractions is .* grow to 1"):
        config(fractions)
