"""Matryoshka by hand, against PyTorch, padded and in sweeps."""

import dataclasses

import numpy as np
import pytest
from k_sparse import (
    D_IN,
    D_SAE,
    DEAD_AFTER,
    SINCE,
    assert_padding_changes_nothing,
    assert_same_loss,
    loss_on,
    oracle,
    seldom_firing_params,
    still_dead,
)
from sweeps import quietly, samples

from sae_jax import SAEConfig, SweepResult
from sae_jax.architectures.matryoshka import MatryoshkaSAE

K = 3
PRESETS = [None, "saelens", "dictionary_learning"]
FRACTIONS = (0.25, 0.5, 1.0)
CONFIG = SAEConfig(D_SAE, K, architecture="matryoshka", prefix_fractions=FRACTIONS)
WITH_AUX = dataclasses.replace(CONFIG, aux_coefficient=0.5, aux_k=4, dead_after=DEAD_AFTER)


@pytest.mark.parametrize(
    ("preset", "weight"), [(None, 1 / 2 / 3), ("saelens", 1.0), ("dictionary_learning", 1 / 9)]
)
def test_errors_of_prefixes_by_hand(preset, weight):
    params = {
        "w_enc": np.array([[1, 0, 0], [0, 1, 0]], np.float32),
        "b_enc": np.array([0, 0, 1], np.float32),
        "w_dec": np.array([[0, 1], [1, 0], [0, 1]], np.float32),
        "b_dec": np.zeros(2, np.float32),
    }
    x = np.array([[1.0, 3.0]], np.float32)
    # Latents are 1, 3 and 1; prefixes of 1, 2 and 3 latents give (0, 1), (3, 1) and (3, 2).
    errors = [(1 - 0) ** 2 + (3 - 1) ** 2, (1 - 3) ** 2 + (3 - 1) ** 2, (1 - 3) ** 2 + (3 - 2) ** 2]
    config = SAEConfig(
        3, 3, architecture="matryoshka", prefix_fractions=(1 / 3, 2 / 3, 1.0), preset=preset
    )
    assert loss_on(config, params, x)[0] == pytest.approx(weight * sum(errors), rel=1e-6)


@pytest.mark.parametrize("fractions", [FRACTIONS, (1 / 24, 1.0)])
@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_gradients_equal_pytorch(preset, fractions):
    config = dataclasses.replace(
        WITH_AUX, preset=preset, prefix_fractions=fractions, center_input=True
    )
    params, x = seldom_firing_params(), samples(40, D_IN)
    expected = oracle(config, params, x, still_dead(config, params, x))
    assert_same_loss(loss_on(config, params, x, since_fired=SINCE), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_changes_nothing(preset):
    assert_padding_changes_nothing(dataclasses.replace(WITH_AUX, preset=preset), samples(40, D_IN))


@pytest.mark.parametrize("preset", PRESETS)
def test_one_prefix_is_a_batch_topk(preset):
    config = dataclasses.replace(CONFIG, preset=preset, prefix_fractions=(1.0,))
    params, x = seldom_firing_params(), samples(40, D_IN)
    plain = dataclasses.replace(config, architecture="batch_topk", prefix_fractions=None)
    assert_same_loss(loss_on(config, params, x), loss_on(plain, params, x))


def test_first_latents_reconstruct_better_alone_than_those_of_a_batch_topk():
    x = samples(500, D_IN)
    fields = {"prefix_fractions": (0.25, 1.0), "architecture": "matryoshka"}
    configs = [SAEConfig(32, 4, architecture="batch_topk"), SAEConfig(32, 4, **fields)]
    result = quietly(configs, x, x, epochs=30, batch_size=50)
    errors = []
    for sae in (result.sae(0), result.sae(1)):
        z = np.where(np.arange(32) < 8, sae.encode(x), 0.0)
        errors.append(np.mean((np.asarray(sae.decode(z)) - x) ** 2))
    assert errors[1] < 0.8 * errors[0]


def test_members_of_other_prefixes_share_a_program_and_are_saved(tmp_path):
    x = samples(100, D_IN)
    configs = [
        SAEConfig(24, 3, architecture="matryoshka", prefix_fractions=(0.25, 0.5, 1.0)),
        SAEConfig(19, 2, seed=1, architecture="matryoshka", prefix_fractions=(0.1, 0.3, 1.0)),
    ]
    assert configs[0].template == configs[1].template
    result = quietly(configs, x, x, epochs=5, batch_size=32, max_padding=0.3)
    (alone,) = quietly(configs[1:], x, x, epochs=5, batch_size=32).members
    np.testing.assert_allclose(result.members[1].losses, alone.losses, rtol=1e-4)
    result.save(tmp_path / "sweep")
    read = SweepResult.load(tmp_path / "sweep")
    assert read.table() == result.table()
    for i, config in enumerate(configs):
        assert read.members[i].config == config
        assert isinstance(read.sae(i), MatryoshkaSAE)
        np.testing.assert_array_equal(read.sae(i).encode(x), result.sae(i).encode(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": None}, "k is None; matryoshka needs 1 to d_sae = 24"),
        ({"prefix_fractions": None}, "prefix_fractions is None; matryoshka needs numbers that"),
        ({"prefix_fractions": (0.5, 0.25, 1.0)}, r"prefix_fractions is \(0.5, 0.25, 1.0\)"),
        ({"prefix_fractions": (0.25, 0.5)}, r"is \(0.25, 0.5\); allowed is numbers that grow to 1"),
        ({"prefix_fractions": (0.01, 1.0)}, "each by at least one of d_sae = 24 latents"),
        ({"target_l0": 3.0}, "target_l0 is 3.0; allowed is None for matryoshka"),
    ],
)
def test_configs_that_no_member_can_have_are_refused(fields, message):
    x = samples(20)
    fields = {"k": 3, "architecture": "matryoshka", "prefix_fractions": FRACTIONS} | fields
    with pytest.raises(ValueError, match=message):
        quietly([SAEConfig(24, **fields)], x, x)
