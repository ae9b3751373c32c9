from itertools import permutations

import numpy as np
import pytest

from sae_jax.features.stability import feature_stability

ALL = np.ones(3, bool)


def test_hand_computed():
    a = np.array([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    b = np.array([[-5.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    got = feature_stability(a, b, ALL, np.array([True, True, False]))
    half = 0.5**0.5
    # Best for each of a: 1 (sign does not matter), sqrt(1/2), 1.
    assert got["feature_stability"] == pytest.approx((1 + half + 1) / 3)
    # One to one, the third has nothing left: the first or third takes -x, the second the diagonal.
    assert got["feature_stability_matched"] == pytest.approx((1 + half) / 2)


def test_permuted_flipped_and_scaled_decoder_is_the_same():
    rng = np.random.default_rng(0)
    w_dec = rng.normal(size=(20, 16))
    order = rng.permutation(20)
    other = w_dec[order] * rng.choice([-3.0, 0.5], size=(20, 1))
    alive = rng.random(20) < 0.8
    got = feature_stability(w_dec, other, alive, alive[order])
    assert got == pytest.approx({"feature_stability": 1.0, "feature_stability_matched": 1.0})


def test_matching_is_the_best_of_all():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    alive = np.ones(5, bool)

    def cosine(u, v):
        return abs(u @ v) / np.linalg.norm(u) / np.linalg.norm(v)

    best = max(
        np.mean([cosine(a[i], b[j]) for i, j in enumerate(order)])
        for order in permutations(range(5))
    )
    got = feature_stability(a, b, alive, alive)
    assert got["feature_stability_matched"] == pytest.approx(best)
    assert got["feature_stability"] >= best


def test_no_alive_latents_and_unequal_widths():
    got = feature_stability(np.eye(3), np.eye(3), ALL, ~ALL)
    assert np.isnan(list(got.values())).all()
    with pytest.raises(ValueError, match="widths: 3 and 2"):
        feature_stability(np.eye(3), np.eye(3)[:, :2], ALL, ALL)
