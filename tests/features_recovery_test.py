import numpy as np
import pytest

from sae_jax.activations.synthetic import KnownFeatures, known_features
from sae_jax.features.recovery import recovery


def test_the_features_themselves_are_recovered_in_any_order():
    known = known_features(200, 12, 8, 2.0)
    order = np.random.default_rng(0).permutation(8)
    found = recovery(-3 * known.features[order], known.codes[:, order], known)
    assert found == pytest.approx({"mean_max_cosine": 1.0, "recovery_f1": 1.0})


def test_by_hand():
    known = KnownFeatures(
        x=np.zeros((4, 2), np.float32),
        codes=np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32),
        features=np.eye(2, dtype=np.float32),
    )
    # Latent 0 lies at 45 degrees and fires on samples 0, 1, 3; latent 1 never does.
    z = np.array([[1, 0], [1, 0], [0, 0], [-1, 0]], np.float32)
    found = recovery(np.array([[1, 1], [1, 0]], np.float32), z, known)
    # F1 of feature 0: 2 hits of 3 firings and 2 occurrences, 2 * 2 / 5; feature 1 has no latent.
    assert found == pytest.approx({"mean_max_cosine": 0.5**0.5, "recovery_f1": 0.8 / 2})


def test_nothing_fires():
    known = known_features(10, 4, 6, 1.0)
    nothing = recovery(np.ones((3, 4)), np.zeros((10, 3)), known)
    assert nothing == {"mean_max_cosine": 0.0, "recovery_f1": 0.0}


@pytest.mark.parametrize(("d_in", "num_samples"), [(5, 10), (4, 9)])
def test_what_does_not_fit_is_named(d_in, num_samples):
    with pytest.raises(ValueError, match="do not fit features"):
        recovery(np.ones((3, d_in)), np.zeros((num_samples, 3)), known_features(10, 4, 6, 1.0))
