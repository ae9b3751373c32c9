import numpy as np
import pytest

from sae_jax.activations.slices import offset_severity
from sae_jax.activations.synthetic import known_features, permuted_dimensions


def test_samples_are_sums_of_their_features():
    x, codes, features = known_features(400, 24, 60, 5.0, seed=3)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    sums = codes.astype(np.float64) @ features
    np.testing.assert_allclose(x, sums - sums.mean(axis=0), atol=1e-5)
    assert ((codes == 0) | ((codes >= 0.5) & (codes <= 1.5))).all()


def test_as_many_features_are_active_as_asked_and_rarer_ones_are_rarer():
    codes = known_features(20_000, 4, 200, 8.0, seed=0).codes
    rates = (codes > 0).mean(axis=0)
    assert rates.sum() == pytest.approx(8.0, rel=0.02)
    assert rates[0] == pytest.approx(0.5, abs=0.02)
    # Where the bound of one half does not bind, a rate is in proportion to 1 / rank.
    assert rates[20:40].mean() / rates[80:160].mean() == pytest.approx(
        (1 / np.arange(21, 41)).mean() / (1 / np.arange(81, 161)).mean(), rel=0.1
    )


@pytest.mark.parametrize("severity", [0.0, 2.0])
def test_the_offset_is_as_severe_as_asked(severity):
    x = known_features(500, 16, 40, 4.0, offset_severity=severity).x
    assert offset_severity(x) == pytest.approx(severity, abs=1e-5)


@pytest.mark.parametrize("num_active", [0.0, 5.1, float("nan")])
def test_more_than_half_of_the_features_are_refused(num_active):
    with pytest.raises(ValueError, match="up to half of num_features = 10"):
        known_features(5, 4, 10, num_active)


def test_dimensions_are_permuted_each_by_itself():
    x = np.random.default_rng(0).normal(size=(300, 3))
    x[:, 1] = x[:, 0]
    permuted = permuted_dimensions(x, seed=1)
    np.testing.assert_array_equal(np.sort(permuted, axis=0), np.sort(x, axis=0))
    assert abs(np.corrcoef(permuted[:, 0], permuted[:, 1])[0, 1]) < 0.2
    assert (permuted_dimensions(x, seed=2) != permuted).any()
