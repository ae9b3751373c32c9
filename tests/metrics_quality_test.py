import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_oracle import largest_percent, oracle, samples

from sae_jax.metrics import quality as metrics


def stream(x, z, x_hat, batch_size, outliers=None):
    """Sums over batches of one shape; the rows that pad the last one are rubbish."""
    outliers = largest_percent(x) if outliers is None else outliers
    n = len(x)
    sums, batch_sums = [], jax.jit(metrics.batch_sums)
    for start in range(0, n, batch_size):
        rows = np.arange(start, start + batch_size)
        mask = rows < n
        batch = [np.where(mask[:, None], a[rows % n], np.nan) for a in (x, z, x_hat)]
        sums.append(batch_sums(*batch, mask, outliers[rows % n]))
    return functools.reduce(metrics.merge, sums)


def test_hand_computed():
    x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    x_hat = jnp.array([[1.0, 1.0], [3.0, 7.0]])
    z = jnp.array([[0.0, -2.0, 0.0], [4.0, 0.0, 0.0]])
    got = metrics.score(x, z, x_hat)
    assert got["mse"] == 0.5  # (0 + 1 + 0 + 1) / 4
    # Around the scalar mean 3: 4 + 1 + 0 + 9 = 14; the residuals' mean is 0: 2.
    np.testing.assert_allclose(got["explained_variance"], 1 - 2 / 14, rtol=1e-6)
    # Around the vector mean (2, 4): 1 + 4 + 1 + 4 = 10.
    np.testing.assert_allclose(got["fvu"], 2 / 10, rtol=1e-6)
    np.testing.assert_allclose(got["r2"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(
        got["cosine_similarity"],
        (3 / np.sqrt(5 * 2) + (9 + 42) / np.sqrt(45 * 58)) / 2,
        rtol=1e-6,
    )
    assert got["l0"] == 1
    assert got["num_alive"] == 2
    np.testing.assert_allclose(got["dead_fraction"], 1 / 3, rtol=1e-6)
    assert got["mean_activation"] == 3
    assert got["max_activation"] == 4
    np.testing.assert_array_equal(got["firing_rate"], [0.5, 0.5, 0])
    np.testing.assert_array_equal(got["mean_magnitude"], [2, 1, 0])
    of_two = metrics.score(x, z, x_hat, jnp.array([True, True, False]))
    assert of_two["dead_fraction"] == 0
    assert of_two["mean_activation"] == 3
    eighth = metrics.score(x, z / 8, x_hat, jnp.array([True, True, False]))
    assert eighth["max_activation"] == 0.5
    without_first = metrics.score(x, z, x_hat, jnp.array([False, True, True]))
    assert without_first["max_activation"] == 2


@pytest.mark.parametrize("batch_size", [1, 7, 256, 700])
def test_every_metric_matches_float64_at_any_batch_size(batch_size):
    data = samples()
    outliers = np.random.default_rng(1).random(700) < 0.1
    got = metrics.finalize(stream(*data, batch_size, outliers))
    expected = oracle(*data, outliers)
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=3e-6, atol=1e-7, err_msg=name)
    assert got["dead_fraction"] == 1 / 40
    assert got["almost_dead_fraction"] == 1 / 40


def test_offset_much_larger_than_spread_does_not_cancel():
    """A sum of squares in float32 loses all digits here: the offset is 3,000 spreads."""
    x, z, x_hat = samples()
    offset = np.float32(3000.0)
    x, x_hat = x - x.mean(axis=0) + offset, x_hat - x.mean(axis=0) + offset
    got = metrics.finalize(stream(x, z, x_hat, 7))
    np.testing.assert_allclose(got["fvu"], oracle(x, z, x_hat)["fvu"], rtol=1e-5)


def test_means_closer_than_float32_tells_apart_are_told_apart():
    """float32 has steps of 1/32 at 2^18; the dimensions' and outliers' means are as close."""
    rng = np.random.default_rng(0)
    outliers = rng.random(700) < 0.1
    x = 2.0**18 + 0.1 * rng.normal(size=24) + 0.05 * rng.normal(size=(700, 24))
    x = (x + 0.1 * outliers[:, None]).astype(np.float32)
    x_hat = (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
    z = np.ones((700, 1), np.float32)
    got = metrics.finalize(stream(x, z, x_hat, 7, outliers))
    expected = oracle(x, z, x_hat, outliers)
    for name in ("explained_variance", "fvu", "fvu_without_outliers", "outlier_variance_share"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, err_msg=name)


def test_metrics_of_bfloat16_are_those_of_its_values():
    data = [jnp.asarray(array, jnp.bfloat16) for array in samples(n=40)]
    got = metrics.score(*data)
    for name, value in metrics.score(*(array.astype(jnp.float32) for array in data)).items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_counts_go_on_where_float32_ends():
    x = np.ones((2**20, 1), np.float32)
    share = metrics.batch_sums(*(jnp.asarray(x),) * 3)
    sums = functools.reduce(metrics.merge, [share] * 17)
    one_more = metrics.merge(sums, metrics.batch_sums(*(jnp.asarray(x[:1]),) * 3))
    # 17 * 2^20 + 1 has more bits than float32; of one sample more the rate stays 1.
    assert one_more[2].num_samples == 17 * 2**20 + 1
    assert metrics.finalize(one_more)["firing_rate"] == 1


def test_merge_of_two_shares_equals_one_pass():
    x, z, x_hat = samples()
    outliers = largest_percent(x)
    shares = [
        stream(x[rows], z[rows], x_hat[rows], 64, outliers[rows])
        for rows in (np.s_[:123], np.s_[123:])
    ]
    got = metrics.finalize(metrics.merge(*shares))
    for name, value in oracle(x, z, x_hat).items():
        np.testing.assert_allclose(got[name], value, rtol=3e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("n", "d_in", "doublings"),
    [(64, 2048, 14), (700, 24, 23)],
    ids=["2^31 elements", "5.9e9 samples"],
)
def test_data_repeated_beyond_what_32_bits_count_have_the_same_metrics(n, d_in, doublings):
    x, z, x_hat = samples(n=n, d_in=d_in)
    outliers = metrics.outlier_rows(x)
    sums = stream(x, z, x_hat, n, outliers)
    for _ in range(doublings):
        sums = metrics.merge(sums, sums)
    got = metrics.finalize(sums)
    for name, value in oracle(x, z, x_hat, outliers).items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


VECTOR = np.array([0.1, -1000.3, 7e-5, 3.3], np.float32)
RATIOS = ["fvu", "r2", "explained_variance_dictionary_learning"]
RATIOS_OF_PARTS = [*RATIOS, "fvu_without_outliers", "outlier_variance_share"]


@pytest.mark.parametrize("batch_size", [1, 7, 300])
@pytest.mark.parametrize("n", [1, 300])
def test_relative_metrics_of_equal_rows_are_not_numbers(n, batch_size):
    x = np.tile(VECTOR, (n, 1))
    x_hat = (x + np.random.default_rng(0).normal(size=x.shape)).astype(np.float32)
    z = np.ones((n, 3), np.float32)
    got = metrics.finalize(stream(x, z, x_hat, batch_size, metrics.outlier_rows(x)))
    for name in RATIOS_OF_PARTS:
        assert np.isnan(got[name]), name
    residual = (x - x_hat).astype(np.float64)
    np.testing.assert_allclose(got["mse"], (residual**2).mean(), rtol=1e-5)
    # Its variances are over all elements, and those differ.
    expected = 1 - residual.var() / x.astype(np.float64).var()
    np.testing.assert_allclose(got["explained_variance"], expected, rtol=1e-5)


def test_explained_variance_of_equal_elements_is_not_a_number():
    x = np.full((300, 4), 0.1, np.float32)
    got = metrics.finalize(stream(x, np.ones((300, 3), np.float32), x + x, 7))
    assert np.isnan(got["explained_variance"])


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 2**16),
    spread=st.floats(1e-7, 1.0),
    batch_size=st.sampled_from([1, 7, 50]),
)
def test_a_real_variance_is_scored_right_however_small_beside_the_mean(
    exponent, seed, spread, batch_size
):
    rng = np.random.default_rng(seed)
    x = (10.0**exponent * (1 + spread * rng.normal(size=(50, 3)))).astype(np.float32)
    x[0] = np.nextafter(x[1], np.float32(np.inf))  # not all rows are equal
    x_hat = (x + np.abs(x) * spread * rng.normal(size=x.shape)).astype(np.float32)
    z = np.ones((50, 3), np.float32)
    got = metrics.finalize(stream(x, z, x_hat, batch_size))
    want = oracle(x, z, x_hat)
    for name in ("fvu", "explained_variance", "explained_variance_dictionary_learning"):
        unexplained = want[name] if name == "fvu" else 1 - want[name]
        tolerance = 1e-5 * max(1, unexplained)
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 7, 700])
def test_infinite_values_stay_infinite(batch_size):
    x, z, x_hat = samples()
    got = metrics.finalize(stream(x, z, np.float32(1e30) * x_hat, batch_size))
    for name in ("mse", "fvu", "fvu_without_outliers"):
        assert got[name] == np.inf, name
    assert got["r2"] == -np.inf
    for name in ("explained_variance", "explained_variance_dictionary_learning"):
        # Variances of batches are infinite in float32; those between batches are not in float64.
        assert got[name] < -1e55, name


def test_r2_is_what_sae_lens_calls_explained_variance():
    """The example by which their reviewers checked the definition about the mean: 1 - 1 / 5."""
    x, x_hat = jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.array([[2.0, 1.0], [0.0, 3.0]])
    np.testing.assert_allclose(metrics.score(x, jnp.ones((2, 1)), x_hat)["r2"], 0.8, rtol=1e-6)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([2.0], [0]),
        ([1.0, 3.0, 2.0], [1]),
        ([1.0, 3.0, 2.0, 3.0], [1]),  # of equal norms the lower index
        ([1.0] * 199, [0]),
        ([1.0] * 150 + [2.0] * 50, [150, 151]),
        ([1.0, 1e30, 2e30], [2]),  # the square is no float32
    ],
)
def test_outliers_are_the_percent_of_largest_norm_and_at_least_one(norms, expected):
    x = np.outer(norms, [0.6, -0.8]).astype(np.float32)
    np.testing.assert_array_equal(np.flatnonzero(metrics.outlier_rows(x)), expected)


@pytest.mark.parametrize("batch_size", [1, 7, 256, 1000])
def test_a_percent_of_huge_rows_does_not_hide_a_bad_reconstruction(batch_size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 24)).astype(np.float32)
    sinks = rng.permutation(1000)[:10]
    x[sinks] *= np.float32(300)
    z = np.ones((1000, 3), np.float32)
    x_hat = np.where(np.isin(np.arange(1000), sinks)[:, None], 0.99 * x, 0.25 * x)
    outliers = metrics.outlier_rows(x)
    np.testing.assert_array_equal(np.flatnonzero(outliers), np.sort(sinks))
    got = metrics.finalize(stream(x, z, x_hat.astype(np.float32), batch_size, outliers))
    want = oracle(x, z, x_hat.astype(np.float32), outliers)
    for name in ("fvu", "fvu_without_outliers", "outlier_variance_share"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, err_msg=name)
    assert got["fvu"] < 0.01
    assert got["outlier_variance_share"] > 0.99
    np.testing.assert_allclose(got["fvu_without_outliers"], 0.75**2, rtol=0.01)


def test_padding_latents_never_enter():
    x, z, x_hat = samples()
    padded = np.pad(z, ((0, 0), (0, 24)))
    mask = np.arange(64) < 40
    got = metrics.finalize(jax.jit(metrics.batch_sums)(x, padded, x_hat), mask)
    for name, value in metrics.score(x, z, x_hat).items():
        np.testing.assert_allclose(
            got[name] if value.ndim == 0 else got[name][:40], value, rtol=1e-6, err_msg=name
        )


def test_vmapped_members_equal_single_ones():
    members = [samples(seed) for seed in range(3)]
    stacked = [np.stack(arrays) for arrays in zip(*members, strict=True)]
    sums = jax.vmap(metrics.batch_sums)(*stacked)
    twice = metrics.merge(sums, sums)
    for i, member in enumerate(members):
        once, again = (
            metrics.finalize(jax.tree.map(lambda leaf, i=i: leaf[i], found))
            for found in (sums, twice)
        )
        for name, value in metrics.score(*member).items():
            for got in (once, again):
                np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_diverged_member_is_nan_and_not_dead():
    x, z, x_hat = samples()
    got = metrics.score(x, np.full_like(z, np.nan), np.full_like(x_hat, np.nan))
    assert np.isnan(got["mse"])
    assert np.isnan(got["explained_variance"])
    assert got["dead_fraction"] == 0


def test_almost_dead_is_below_half_a_percent_and_not_at_it():
    z = np.arange(1600)[:, None] < [0, 7, 8, 1600]
    x = np.ones((1600, 2), np.float32)
    got = metrics.score(x, z.astype(np.float32), x)
    assert got["almost_dead_fraction"] == 0.25


def test_a_zero_reconstruction_has_cosine_zero_and_a_perfect_one_1():
    x, z, x_hat = samples(n=8)
    assert metrics.score(x, z, np.zeros_like(x_hat))["cosine_similarity"] == 0
    unit = np.eye(2, dtype=np.float32)
    assert metrics.score(unit, unit, unit)["cosine_similarity"] == 1


@pytest.mark.parametrize(
    ("x", "z", "x_hat", "mask", "outliers"),
    [
        ((8, 3), (8, 5), (8, 2), (8,), (8,)),
        ((8, 3), (8, 5), (1, 3), (8,), (8,)),
        ((8, 3), (1, 5), (8, 3), (8,), (8,)),
        ((8, 3), (8, 5), (8, 3), (1,), (8,)),
        ((8, 3), (8, 5), (8, 3), (8,), (1,)),
        ((8, 3), (8, 5), (8, 3), (8, 1), (8,)),
        ((2, 8, 3), (8, 5), (2, 8, 3), (8,), (8,)),
        ((8, 3), (8, 5, 1), (8, 3), (8,), (8,)),
    ],
)
def test_shapes_are_checked_before_they_could_broadcast(x, z, x_hat, mask, outliers):
    zeros = [jnp.zeros(shape) for shape in (x, z, x_hat)]
    masks = [jnp.zeros(shape, bool) for shape in (mask, outliers)]
    with pytest.raises(AssertionError):
        metrics.batch_sums(*zeros, *masks)


@pytest.mark.parametrize(("d_in", "d_sae"), [(3, 1), (1, 5)])
def test_sums_of_other_widths_are_not_merged(d_in, d_sae):
    def sums(d_in, d_sae):
        return metrics.batch_sums(*(jnp.zeros((8, width)) for width in (d_in, d_sae, d_in)))

    with pytest.raises(AssertionError):
        metrics.merge(sums(3, 5), sums(d_in, d_sae))


def test_shapes_of_latent_masks_and_decoders_are_checked():
    with pytest.raises(AssertionError):
        metrics.score(*(jnp.zeros((8, width)) for width in (3, 5, 3)), jnp.ones(1, bool))
    for w_dec, alive in (((2, 5, 3), 5), ((5, 3), 1)):
        with pytest.raises(AssertionError):
            metrics.decoder_coherence(jnp.ones(w_dec), jnp.ones(alive, bool))


def test_outliers_of_one_batch_by_hand():
    x = jnp.array([[1.0, 2.0], [3.0, 6.0], [100.0, 200.0]])
    x_hat = jnp.array([[1.0, 1.0], [3.0, 7.0], [100.0, 190.0]])
    outliers = jnp.array([False, False, True])
    got = metrics.score(x, jnp.ones((3, 1)), x_hat, outliers=outliers)
    # 1 + 1 of the inliers' 1 + 4 + 1 + 4 around (2, 4).
    np.testing.assert_allclose(got["fvu_without_outliers"], 2 / 10, rtol=1e-6)
    # Around (104 / 3, 208 / 3), where both dimensions have the same shares.
    share = 196**2 / (101**2 + 95**2 + 196**2)
    np.testing.assert_allclose(got["outlier_variance_share"], share, rtol=1e-6)


def test_decoder_coherence_hand_computed():
    w_dec = jnp.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 1.0], [5.0, 0.0]])
    alive = jnp.array([True, True, True, False])  # the last would have cosine 1 with the first
    got = metrics.decoder_coherence(w_dec, alive)
    np.testing.assert_allclose(got["decoder_coherence_max"], np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose(got["decoder_coherence_mean"], 2 * np.sqrt(0.5) / 3, rtol=1e-6)


def test_decoder_coherence_does_not_depend_on_norms_and_a_zero_row_overlaps_none():
    w_dec = jnp.array([[3e-4, 4e-4], [0.0, 0.01], [0.0, 0.0]])
    got = metrics.decoder_coherence(w_dec, jnp.ones(3, bool))
    np.testing.assert_allclose(got["decoder_coherence_max"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(got["decoder_coherence_mean"], 0.8 / 3, rtol=1e-6)


def test_decoder_coherence_matches_numpy_across_blocks():
    rng = np.random.default_rng(0)
    w_dec = rng.normal(size=(1100, 16)).astype(np.float32)
    alive = rng.random(1100) < 0.7
    rows = w_dec[alive].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.abs(rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
    got = metrics.decoder_coherence(w_dec, alive)
    np.testing.assert_allclose(got["decoder_coherence_max"], cosines.max(), rtol=1e-5)
    np.testing.assert_allclose(got["decoder_coherence_mean"], cosines.mean(), rtol=1e-5)


def test_decoder_coherence_of_bfloat16_is_that_of_its_values():
    w_dec = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16)), jnp.bfloat16)
    a, b = np.asarray(w_dec, np.float64)
    expected = abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
    got = metrics.decoder_coherence(w_dec, jnp.ones(2, bool))
    np.testing.assert_allclose(got["decoder_coherence_max"], expected, rtol=1e-5)


def test_decoder_coherence_needs_two_alive_latents():
    got = metrics.decoder_coherence(jnp.eye(3), jnp.array([True, False, False]))
    assert np.isnan(got["decoder_coherence_max"])
    assert np.isnan(got["decoder_coherence_mean"])
