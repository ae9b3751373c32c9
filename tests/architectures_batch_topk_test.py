"""BatchTopK against NumPy: latents of a batch, the threshold, padding, and members of a sweep."""

import jax.numpy as jnp
import numpy as np
import pytest
from parity import member
from random_saes import random_params
from sweeps import quietly, samples

from sae_jax import SAEConfig, SweepResult, formats
from sae_jax.architectures.batch_topk import BatchTopKSAE, Threshold
from sae_jax.architectures.registry import architecture_of

D_IN, D_SAE, K, BATCH = 8, 24, 3, 16
PRESETS = [None, "saelens", "dictionary_learning"]
PREFIXES = {"batch_topk": None, "matryoshka": (0.25, 0.5, 1.0)}


def config(architecture="batch_topk", preset=None, **fields):
    fields = {"aux_coefficient": 0.5, "aux_k": 4, "dead_after": 40} | fields
    return SAEConfig(
        D_SAE,
        K,
        architecture=architecture,
        preset=preset,
        prefix_fractions=PREFIXES[architecture],
        **fields,
    )


def padded(params, width):
    """Parameters with latents of zeros behind the others."""
    more = width - D_SAE
    return params | {
        "w_enc": np.pad(params["w_enc"], ((0, 0), (0, more))),
        "b_enc": np.pad(params["b_enc"], (0, more)),
        "w_dec": np.pad(params["w_dec"], ((0, more), (0, 0))),
    }


def test_the_largest_of_the_batch_are_kept():
    pre = jnp.array([[3.0, -9.0, 2.0], [0.5, 1.0, -4.0]])
    sae = BatchTopKSAE(random_params(0, 8, 3), 0.0)
    np.testing.assert_array_equal(
        sae.activate_batch(pre, jnp.int32(1)), [[3.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    )
    # Six entries for k = 3, of which two are negative: a ReLU leaves four.
    np.testing.assert_array_equal(sae.activate_batch(pre, 3), [[3.0, 0.0, 2.0], [0.5, 1.0, 0.0]])


def test_inference_keeps_what_is_above_the_threshold_whatever_else_is_in_the_batch():
    pre = jnp.array([[3.0, -9.0, 2.0], [0.5, 1.0, -4.0]])
    for threshold, expected in (
        (1.0, [[3.0, 0.0, 2.0], [0.0, 0.0, 0.0]]),
        (0.75, [[3.0, 0.0, 2.0], [0.0, 1.0, 0.0]]),
        (-1.0, [[3.0, 0.0, 2.0], [0.5, 1.0, 0.0]]),
    ):
        sae = BatchTopKSAE(random_params(0, 8, 3), threshold)
        np.testing.assert_array_equal(sae.activate(pre), expected)
        np.testing.assert_array_equal(sae.activate(pre[1:]), expected[1:])


@pytest.mark.parametrize(
    ("preset", "first", "step", "expected"),
    [
        # Smallest kept: 2, none, 4.
        (None, -1.0, 0, [2.0, 2.0, 0.99 * 2.0 + 0.01 * 4.0]),
        ("saelens", 0.0, 0, [0.02, 0.02, 0.99 * 0.02 + 0.01 * 4.0]),
        (
            "dictionary_learning",
            -1.0,
            1001,
            [2.0, 0.999 * 2.0, 0.999**2 * 2.0 + 0.001 * 4.0],
        ),
        ("dictionary_learning", -1.0, 998, [-1.0, -1.0, -1.0]),
        # Of steps 999, 1000 and 1001 only the last counts.
        ("dictionary_learning", -1.0, 999, [-1.0, -1.0, 4.0]),
    ],
)
def test_threshold(preset, first, step, expected):
    threshold = Threshold(jnp.float32(first))
    batches = [[[3.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 5.0]]]
    for i, kept in enumerate(batches):
        threshold.follow(jnp.array(kept), jnp.int32(step + i), preset)
        np.testing.assert_allclose(threshold[...], expected[i], rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_equals_numpy(preset):
    params = random_params(0, D_IN, D_SAE)
    x = samples(BATCH, D_IN)
    loss, _ = member(config(preset=preset, aux_coefficient=0.0), params, BATCH).gradients(x, 0)
    p = {name: array.astype(np.float64) for name, array in params.items()}
    norms = np.linalg.norm(p["w_dec"], axis=1) if preset == "saelens" else np.ones(D_SAE)
    ranked = np.maximum((x @ p["w_enc"] + p["b_enc"]) * norms, 0.0)
    smallest = np.sort(ranked, axis=None)[-K * BATCH]
    z = np.where(ranked >= smallest, ranked, 0.0) / norms
    errors = (z @ p["w_dec"] + p["b_dec"] - x) ** 2
    expected = np.mean(errors) if preset is None else np.mean(np.sum(errors, axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka"])
def test_padding_changes_nothing(architecture, preset):
    params = random_params(0, D_IN, D_SAE)
    data = samples(6 * BATCH, D_IN).reshape(6, BATCH, D_IN)
    ours = config(architecture, preset, unit_decoder=preset == "dictionary_learning")
    width = 40
    unfired = np.where(np.arange(width) % 4 == 0, 100, 0)
    unpadded = member(ours, params, BATCH, unfired[:D_SAE])
    wide = member(ours, padded(params, width), BATCH, unfired)
    losses = []
    gradients = []
    for sae in (unpadded, wide):
        loss, gradient = sae.gradients(data[0], 1001)
        losses.append(loss)
        gradients.append(gradient)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for name, gradient in gradients[0].items():
        found = gradients[1][name]
        rest = found.shape[-1] if name == "b_dec" else D_SAE
        found = found.T if name == "w_enc" else found
        gradient = gradient.T if name == "w_enc" else gradient
        np.testing.assert_allclose(
            found[:rest], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max(), err_msg=name
        )
        assert not found[rest:].any(), name
    unpadded, losses = unpadded.stepped(data, 1001)
    wide, wide_losses = wide.stepped(data, 1001)
    np.testing.assert_allclose(wide_losses, losses, rtol=1e-4)
    kept, wide_kept = unpadded.arrays(), wide.arrays()
    np.testing.assert_allclose(wide_kept["threshold"], kept["threshold"], rtol=1e-4)
    assert kept["threshold"] > 0
    np.testing.assert_array_equal(wide_kept["since_fired"][:D_SAE], kept["since_fired"])
    assert not wide_kept["since_fired"][D_SAE:].any()
    for name in ("w_enc_t", "b_enc", "w_dec"):
        assert not np.asarray(wide.state.params[name])[D_SAE:].any(), name


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka"])
def test_a_batch_of_one_sample_with_dead_latents_has_finite_gradients(architecture, preset):
    # The variance of what one sample misses is 0, by which dictionary_learning divides.
    sae = member(config(architecture, preset), random_params(0, D_IN, D_SAE), BATCH, 100)
    loss, gradients = sae.gradients(samples(1, D_IN), 0)
    assert np.isfinite(loss)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name


@pytest.mark.slow  # In a mixed sweep it is tested always.
@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka"])
def test_members_equal_their_solo_runs(architecture):
    x = samples(200, 16)
    fields = {
        "architecture": architecture,
        "aux_coefficient": 0.1,
        "dead_after": 64,
        "prefix_fractions": PREFIXES[architecture],
    }
    configs = [SAEConfig(40, 3, **fields), SAEConfig(32, 5, seed=1, **fields)]
    together = quietly(configs, x, x, epochs=3, batch_size=32, max_padding=0.5)
    for i, one in enumerate(configs):
        alone = quietly([one], x, x, epochs=3, batch_size=32)
        np.testing.assert_allclose(together.members[i].losses, alone.members[0].losses, rtol=1e-4)
        thresholds = [np.asarray(r.sae(j).threshold) for r, j in ((together, i), (alone, 0))]
        assert thresholds[0] > 0
        np.testing.assert_allclose(*thresholds, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka"])
def test_a_sweep_and_its_thresholds_are_read_as_they_were_saved(tmp_path, architecture):
    x = samples(64, D_IN)
    result = quietly([config(architecture)], x, x, epochs=2, batch_size=BATCH)
    result.save(tmp_path / "sweep")
    read = SweepResult.load(tmp_path / "sweep")
    assert read.table() == result.table()
    assert read.members[0].config == config(architecture)
    sae = read.sae(0)
    assert type(sae) is architecture_of(config(architecture))
    assert sae.threshold[...] == result.sae(0).threshold[...] > 0
    np.testing.assert_array_equal(sae.encode(x), result.sae(0).encode(x))
    formats.native.save(sae, tmp_path / "sae", config=config(architecture))
    np.testing.assert_array_equal(formats.native.load(tmp_path / "sae").encode(x), sae.encode(x))


def test_a_trained_sae_keeps_about_k_latents_of_raw_samples():
    """The smallest latent of a batch keeps rather more than k on average, not fewer."""
    x = 5.0 * samples(1000, D_IN) + 3.0
    one = SAEConfig(D_SAE, K, architecture="batch_topk", normalize="center_and_scale")
    (trained,) = quietly([one], x, x, epochs=10, batch_size=100).members
    pre = x.astype(np.float64) @ trained.params["w_enc"] + trained.params["b_enc"]
    l0 = (pre > np.maximum(trained.params["threshold"], 0)).sum(axis=1).mean()
    assert 0.9 * K < l0 < 1.5 * K
    assert (np.asarray(trained.sae().encode(x)) != 0).sum(axis=1).mean() == pytest.approx(l0, 1e-3)


@pytest.mark.parametrize(
    ("preset", "start"), [(None, -1.0), ("saelens", 0.0), ("dictionary_learning", -1.0)]
)
def test_from_params_takes_a_threshold_or_starts_one(preset, start):
    ours = config(preset=preset)
    params = random_params(0, D_IN, D_SAE)
    assert BatchTopKSAE.from_params(params, ours).threshold[...] == start
    read = BatchTopKSAE.from_params(params | {"threshold": np.float32(0.25)}, ours)
    assert read.threshold[...] == 0.25
    with pytest.raises(ValueError, match=r"threshold has shape \(24,\); expected a number"):
        BatchTopKSAE.from_params(params | {"threshold": np.zeros(D_SAE, np.float32)}, ours)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": None}, "k is None; batch_topk needs 1 to d_sae = 24"),
        ({"k": 3, "target_l0": 4.0}, "target_l0 is 4.0; allowed is None for batch_topk"),
        ({"k": 3, "sparsity_coefficient": 0.1}, "sparsity_coefficient is 0.1; allowed is None"),
        ({"k": 3, "bandwidth": 0.1}, "bandwidth is 0.1; allowed is None"),
        ({"k": 3, "prefix_fractions": (0.5, 1.0)}, r"prefix_fractions is \(0.5, 1.0\); allowed"),
    ],
)
def test_fields_without_use_are_refused(fields, message):
    one = SAEConfig(24, architecture="batch_topk", **fields)
    with pytest.raises(ValueError, match=message):
        architecture_of(one).check(one)
