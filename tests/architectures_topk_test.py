"""TopK with AuxK against PyTorch, by hand, and in sweeps."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
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
from random_saes import keep_largest, random_params
from sweeps import quietly, samples

from sae_jax import SAEConfig, SweepResult, TopKSAE
from sae_jax.architectures.functional import split

K = 3
CONFIG = SAEConfig(
    D_SAE, K, architecture="topk", aux_coefficient=0.5, aux_k=4, dead_after=DEAD_AFTER
)
CASES = [
    ("topk", None),
    ("topk", "saelens"),
    ("topk", "dictionary_learning"),
    ("abs_topk", None),
    ("abs_topk", "saelens"),
]


@pytest.mark.parametrize(("architecture", "preset"), CASES)
@pytest.mark.parametrize("aux_k", [1, 9])
def test_loss_and_gradients_equal_pytorch(architecture, preset, aux_k):
    config = dataclasses.replace(
        CONFIG, architecture=architecture, preset=preset, aux_k=aux_k, center_input=True
    )
    params, x = seldom_firing_params(), samples(40, D_IN)
    expected = oracle(config, params, x, still_dead(config, params, x))
    found = loss_on(config, params, x, since_fired=SINCE)
    assert_same_loss(found, expected)
    # Samples since a latent fired: 0 if it did in this batch, else the batch's 40 more.
    fired = (expected[2] != 0).any(axis=0)
    np.testing.assert_array_equal(found[2]["since_fired"], np.where(fired, 0, SINCE + 40))


@pytest.mark.parametrize(("architecture", "rule"), [("topk", "relu"), ("abs_topk", "abs")])
def test_without_dead_latents_it_is_the_plain_loss(architecture, rule):
    x, params = samples(40, D_IN), random_params(0, D_IN, D_SAE)
    config = dataclasses.replace(CONFIG, architecture=architecture)
    p = {name: array.astype(np.float64) for name, array in params.items()}
    z = keep_largest(K, rule)(x @ p["w_enc"] + p["b_enc"])
    expected = np.mean((z @ p["w_dec"] + p["b_dec"] - x) ** 2)
    assert loss_on(config, params, x)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("architecture", "preset"), CASES)
def test_padding_changes_nothing(architecture, preset):
    config = dataclasses.replace(CONFIG, architecture=architecture, preset=preset)
    assert_padding_changes_nothing(config, samples(40, D_IN))


def test_members_with_aux_equal_their_solo_runs_and_are_saved(tmp_path):
    x = samples(200, 16)
    fields = {"architecture": "topk", "aux_k": 4, "dead_after": 64}
    configs = [
        SAEConfig(40, 3, aux_coefficient=0.1, **fields),
        SAEConfig(33, 2, seed=1, aux_coefficient=1.0, **fields),
        SAEConfig(40, 3, architecture="topk"),
        SAEConfig(40, 3),
    ]
    result = quietly(configs, x, x, epochs=4, batch_size=32, max_padding=0.3)
    for i, config in enumerate(configs):
        (alone,) = quietly([config], x, x, epochs=4, batch_size=32).members
        np.testing.assert_allclose(result.members[i].losses, alone.losses, rtol=1e-5)
    result.save(tmp_path / "sweep")
    read = SweepResult.load(tmp_path / "sweep")
    assert read.table() == result.table()
    assert [(sae.rule, sae.k) for sae in map(read.sae, range(4))] == [
        ("relu", 3),
        ("relu", 2),
        ("relu", 3),
        ("abs", 3),
    ]
    for member in read.members:
        assert set(member.params) == {"w_enc", "b_enc", "w_dec", "b_dec"}


def test_aux_revives_latents_that_an_offset_kills():
    x = samples(600, 16) + 8.0
    configs = [
        SAEConfig(64, 4, seed=seed, architecture="topk", aux_coefficient=aux)
        for aux in (0.0, 1.0)
        for seed in range(3)
    ]
    rows = quietly(configs, x[:500], x[500:], epochs=40, batch_size=32).table()
    dead, fvu = (
        [np.mean([row[name] for row in rows[i : i + 3]]) for i in (0, 3)]
        for name in ("dead_fraction", "fvu")
    )
    assert dead[0] > 0.5
    assert dead[1] < dead[0]
    assert fvu[1] < fvu[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": None, "architecture": "topk"}, "k is None; topk needs 1 to d_sae = 24"),
        (
            {"k": 3, "preset": "dictionary_learning"},
            "preset is 'dictionary_learning'; allowed for abs_topk are None and 'saelens'",
        ),
        ({"k": 3, "target_l0": 3.0}, "target_l0 is 3.0; allowed is None for abs_topk"),
        (
            {"k": 3, "architecture": "topk", "prefix_fractions": (0.5, 1.0)},
            r"prefix_fractions is \(0.5, 1.0\); allowed is None for topk",
        ),
    ],
)
def test_configs_that_no_member_can_have_are_refused(fields, message):
    x = samples(20)
    with pytest.raises(ValueError, match=message):
        quietly([SAEConfig(24, **fields)], x, x)


def test_a_kernel_that_does_not_serve_is_refused():
    x = samples(20)
    with pytest.raises(ValueError, match="kernel is 'firing_rows'; .* by 'auto', 'dense'"):
        quietly([CONFIG], x, x, kernel="firing_rows")


def test_what_is_kept_is_no_parameter():
    sae = TopKSAE.from_params(random_params(0, D_IN, D_SAE), CONFIG)
    sae.start_training(CONFIG, None)
    params, kept = split(sae)
    assert sorted(params) == ["b_dec", "b_enc", "w_dec", "w_enc_t"]
    assert sorted(kept) == ["since_fired"]
    assert nnx.state(sae, nnx.Param).keys() == params.keys()
