"""BatchTopK by hand, against PyTorch, padded, at inference and in sweeps."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
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
from random_saes import random_params
from sweeps import quietly, samples

from sae_jax import SAEConfig, SweepResult
from sae_jax.architectures.batch_topk import BatchTopKSAE, Threshold

K = 3
PRESETS = [None, "saelens", "dictionary_learning"]
CONFIG = SAEConfig(D_SAE, K, architecture="batch_topk")
WITH_AUX = dataclasses.replace(CONFIG, aux_coefficient=0.5, aux_k=4, dead_after=DEAD_AFTER)


def random_sae(threshold=0.5):
    return BatchTopKSAE(random_params(0, D_IN, D_SAE), threshold)


def test_a_sample_may_keep_the_latents_of_another():
    pre = jnp.array([[3.0, -1.0, 2.0], [1.0, 0.5, -4.0]])
    sae = random_sae()
    np.testing.assert_array_equal(sae.activate_batch(pre, 1), [[3, 0, 2], [0, 0, 0]])
    # Of six, four are positive.
    np.testing.assert_array_equal(sae.activate_batch(pre, 3), [[3, 0, 2], [1, 0.5, 0]])


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (4, 6), elements=st.floats(-9, 9, width=32)), st.integers(1, 6))
def test_a_batch_keeps_its_largest_positive_latents(pre, k):
    z = np.asarray(random_sae().activate_batch(jnp.asarray(pre), k))
    kept = z != 0
    np.testing.assert_array_equal(z[kept], pre[kept])
    assert kept.sum() == min(4 * k, (pre > 0).sum())
    if kept.any() and not kept.all():
        assert pre[kept].min() >= np.maximum(pre[~kept], 0).max()


def thresholds(preset, first_step, *smallest):
    """After each of some batches, given their smallest kept latents; 0 for a batch of none."""
    threshold, after = Threshold(jnp.float32(0.0 if preset == "saelens" else -1.0)), []
    for i, value in enumerate(smallest):
        kept = jnp.array([[value, 0.0, 3 * value]])
        threshold.follow(kept, jnp.int32(first_step + i), preset)
        after.append(float(threshold[...]))
    return after


@pytest.mark.parametrize(
    ("preset", "first_step", "smallest", "expected"),
    [
        (None, 0, (0, 0.5, 0, 0.2), (-1, 0.5, 0.5, 0.99 * 0.5 + 0.01 * 0.2)),
        ("saelens", 0, (0.5, 0, 0.2), (0.005, 0.005, 0.00695)),
        # It starts after step 1,000, and takes a batch that keeps nothing for 0.
        ("dictionary_learning", 999, (0.7, 0.6, 0.5, 0, 0.2), (-1, -1, 0.5, 0.4995, 0.4992005)),
        ("dictionary_learning", 1001, (0, 0.5), (0, 0.0005)),
    ],
)
def test_thresholds_by_hand(preset, first_step, smallest, expected):
    np.testing.assert_allclose(thresholds(preset, first_step, *smallest), expected, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_gradients_equal_pytorch(preset):
    config = dataclasses.replace(WITH_AUX, preset=preset, center_input=preset is not None)
    params, x = seldom_firing_params(), samples(40, D_IN)
    expected = oracle(config, params, x, still_dead(config, params, x))
    found = loss_on(config, params, x, since_fired=SINCE)
    assert_same_loss(found, expected)
    fired = (expected[2] != 0).any(axis=0)
    np.testing.assert_array_equal(found[2]["since_fired"], np.where(fired, 0, SINCE + 40))


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_of_one_sample_are_finite(preset):
    """A batch of one has no variance, by which two of the definitions scale AuxK."""
    config = dataclasses.replace(WITH_AUX, preset=preset)
    params, x = seldom_firing_params(), samples(1, D_IN)
    loss, gradients, _ = loss_on(config, params, x, since_fired=SINCE)
    if preset != "saelens":
        plain = dataclasses.replace(config, aux_coefficient=0.0, aux_k=None, dead_after=None)
        assert loss == pytest.approx(loss_on(plain, params, x)[0], rel=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_threshold_follows_the_smallest_latent_that_the_batch_keeps(preset):
    config = dataclasses.replace(CONFIG, preset=preset)
    params, x = random_params(0, D_IN, D_SAE), samples(40, D_IN)
    z = oracle(config, params, x, np.zeros(D_SAE, bool))[2]
    expected = thresholds(preset, 2000, z[z > 0].min())
    found = loss_on(config, params, x, step=2000)[2]
    np.testing.assert_allclose(found["threshold"], expected[0], rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_changes_nothing(preset):
    config = dataclasses.replace(WITH_AUX, preset=preset, center_input=True)
    assert_padding_changes_nothing(config, samples(40, D_IN))


def test_inference_takes_the_threshold_and_each_sample_by_itself():
    params, x = random_params(0, D_IN, D_SAE), samples(40, D_IN)
    pre = x.astype(np.float64) @ params["w_enc"] + params["b_enc"]
    sae = random_sae(0.7)
    z = np.asarray(sae.encode(x))
    np.testing.assert_allclose(z, np.where(pre > 0.7, pre, 0.0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([sae.encode(row[None]) for row in x]), z, atol=1e-5)
    # Before the first estimate every positive latent fires.
    z = np.asarray(random_sae(-1.0).encode(x))
    np.testing.assert_allclose(z, np.maximum(pre, 0.0), rtol=1e-5, atol=1e-5)


def test_members_equal_their_solo_runs_and_are_saved(tmp_path):
    x = samples(100, D_IN)
    aux = {"aux_coefficient": 1.0, "dead_after": 64}
    configs = [
        SAEConfig(24, 3, architecture="batch_topk", **aux),
        SAEConfig(19, 2, seed=1, architecture="batch_topk", **aux),
    ]
    result = quietly(configs, x, x, epochs=5, batch_size=32, max_padding=0.3)
    (alone,) = quietly(configs[1:], x, x, epochs=5, batch_size=32).members
    np.testing.assert_allclose(result.members[1].losses, alone.losses, rtol=1e-4)
    for name in ("b_dec", "b_enc", "threshold", "w_dec", "w_enc"):
        np.testing.assert_allclose(result.members[1].params[name], alone.params[name], atol=1e-4)
    result.save(tmp_path / "sweep")
    read = SweepResult.load(tmp_path / "sweep")
    assert read.table() == result.table()
    for i in range(2):
        assert isinstance(read.sae(i), BatchTopKSAE)
        assert read.sae(i).threshold[...] > 0
        np.testing.assert_array_equal(read.sae(i).encode(x), result.sae(i).encode(x))


def test_a_trained_sae_keeps_about_k_latents_in_units_of_the_samples():
    """The smallest latent of a batch keeps rather more than k on average, not fewer."""
    x = 5.0 * samples(1000, D_IN) + 3.0
    config = SAEConfig(24, 3, architecture="batch_topk", normalize="center_and_scale")
    (member,) = quietly([config], x, x, epochs=10, batch_size=100).members
    pre = x.astype(np.float64) @ member.params["w_enc"] + member.params["b_enc"]
    l0 = (pre > np.maximum(member.params["threshold"], 0)).sum(axis=1).mean()
    assert 2.7 < l0 < 4.5
    assert (np.asarray(member.sae().encode(x)) != 0).sum(axis=1).mean() == pytest.approx(l0, 1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": None}, "k is None; batch_topk needs 1 to d_sae = 24"),
        ({"target_l0": 3.0}, "target_l0 is 3.0; allowed is None for batch_topk, which does not"),
        ({"prefix_fractions": (0.5, 1.0)}, r"prefix_fractions is \(0.5, 1.0\); allowed is None"),
        ({"sparsity_loss": "tanh"}, "sparsity_loss is 'tanh'; allowed is 'step' for batch_topk"),
        (
            {"preset": "saelens", "bandwidth": 0.1},
            "bandwidth is 0.1; allowed is None for batch_topk with preset 'saelens'",
        ),
    ],
)
def test_configs_that_no_member_can_have_are_refused(fields, message):
    x = samples(20)
    with pytest.raises(ValueError, match=message):
        quietly([SAEConfig(**{"d_sae": 24, "k": 3, "architecture": "batch_topk"} | fields)], x, x)


def test_refused_threshold():
    with pytest.raises(ValueError, match=r"threshold has shape \(24,\); expected a number, \[\]"):
        random_sae(np.zeros(24))
