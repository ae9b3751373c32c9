import numpy as np
import pytest
from scipy import sparse

from sae_jax.features.firing import Firing

Z = np.array(
    [
        [0.0, -3.0, 0.0, 1.0],
        [2.0, 0.0, 0.0, 1.0],
        [0.0, 1.0, 0.0, -4.0],
        [0.0, 0.0, 0.0, 1.0],
    ],
    np.float32,
)


@pytest.fixture(params=["dense", "sparse"])
def firing(request):
    return Firing(Z if request.param == "dense" else sparse.csr_array(Z))


def test_rates_and_ranking_hand_computed(firing):
    np.testing.assert_array_equal(firing.num_fired, [1, 2, 0, 4])
    np.testing.assert_array_equal(firing.firing_rate, [0.25, 0.5, 0, 1])
    np.testing.assert_array_equal(firing.alive, [True, True, False, True])
    np.testing.assert_array_equal(firing.mean_magnitude, [0.5, 1, 0, 1.75])
    np.testing.assert_array_equal(firing.ranking, [3, 1, 0, 2])


def test_ranking_breaks_ties_by_index():
    firing = Firing(np.array([[0, 1, 1, 0, 1], [0, 1, 0, 1, 1]]))
    np.testing.assert_array_equal(firing.ranking, [1, 4, 2, 3, 0])


def test_top_samples_by_magnitude_then_index(firing):
    np.testing.assert_array_equal(firing.top_samples(1), [0, 2])
    np.testing.assert_array_equal(firing.top_samples(3), [2, 0, 1, 3])
    assert len(firing.top_samples(2)) == 0


def test_top_sample_matrix_marks_top_samples():
    rng = np.random.default_rng(0)
    firing = Firing(rng.normal(size=(300, 6)) * (rng.random((300, 6)) < [0, 0.1, 0.3, 0.5, 1, 1]))
    matrix = firing.top_sample_matrix.toarray()
    for latent in range(6):
        magnitude = np.abs(firing.z.toarray()[:, latent])
        expected = np.zeros(300, bool)
        expected[np.argsort(-magnitude)[: min(100, (magnitude > 0).sum())]] = True
        np.testing.assert_array_equal(matrix[:, latent], expected)


def test_stored_zeros_do_not_fire():
    stored = sparse.csc_array((np.array([0.0, 2.0]), (np.array([0, 1]), np.array([0, 0]))), (3, 2))
    np.testing.assert_array_equal(Firing(stored).num_fired, [1, 0])


def test_rejects_what_is_not_a_matrix():
    with pytest.raises(ValueError, match=r"\[n, F\], found shape \(4,\)"):
        Firing(np.zeros(4))


def test_magnitudes_of_more_samples_than_float32_counts():
    n = 2**24 + 2
    firing = Firing(sparse.csc_array(np.ones((n, 1), np.float32)))
    assert firing.mean_magnitude == 1
