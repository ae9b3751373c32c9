from itertools import permutations

import numpy as np
import pytest

from sae_jax.features.stability import (
    feature_stability,
    stability_by_chance,
    stability_over_seeds,
)

ALL = np.ones(3, bool)


def test_hand_computed():
    a = np.array([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    b = np.array([[-5.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    got = feature_stability(a, b, ALL, np.array([True, True, False]))
    half = 0.5**0.5
    # Best for each of a: 1 (sign does not matter), sqrt(1/2), 1.
    assert got["feature_stability"] == pytest.approx((1 + half + 1) / 3)
    # And back: 1, sqrt(1/2).
    assert got["feature_stability_back"] == pytest.approx((1 + half) / 2)
    # One to one, the third has nothing left: the first or third takes -x, the second the diagonal.
    assert got["feature_stability_matched"] == pytest.approx((1 + half) / 2)


def test_permuted_flipped_and_scaled_decoder_is_the_same():
    rng = np.random.default_rng(0)
    w_dec = rng.normal(size=(20, 16))
    order = rng.permutation(20)
    other = w_dec[order] * rng.choice([-3.0, 0.5], size=(20, 1))
    alive = rng.random(20) < 0.8
    got = feature_stability(w_dec, other, alive, alive[order])
    assert list(got.values()) == pytest.approx([1.0, 1.0, 1.0])


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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_decoders_are_refused_by_name(bad):
    w_dec = np.eye(3)
    w_dec[1, 2] = bad
    with pytest.raises(ValueError, match="w_dec_b has alive latents that are not finite"):
        feature_stability(np.eye(3), w_dec, ALL, ALL)
    dead = np.array([True, False, True])
    assert np.isfinite(list(feature_stability(np.eye(3), w_dec, ALL, dead).values())).all()


def test_every_pair_of_seeds_counts_for_both():
    rng = np.random.default_rng(3)
    decoders = [rng.normal(size=(6, 4)) for _ in range(4)]
    alive = [rng.random(6) < 0.8 for _ in range(4)]

    def best(i, j):
        a, b = (decoders[s][alive[s]] for s in (i, j))
        cosine = np.abs(a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
        return cosine.max(axis=1).mean()

    got = stability_over_seeds(decoders, alive)
    for i, scores in enumerate(got):
        others = [j for j in range(4) if j != i]
        expected = np.mean([(best(i, j) + best(j, i)) / 2 for j in others])
        assert scores["feature_stability"] == pytest.approx(expected)
        matched = [
            feature_stability(decoders[i], decoders[j], alive[i], alive[j])[
                "feature_stability_matched"
            ]
            for j in others
        ]
        assert scores["feature_stability_matched"] == pytest.approx(np.mean(matched))


def test_a_single_seed_and_a_seed_without_alive_latents():
    (alone,) = stability_over_seeds([np.eye(3)], [ALL])
    assert np.isnan(list(alone.values())).all()
    first, second, silent = stability_over_seeds([np.eye(3)] * 3, [ALL, ALL, ~ALL])
    assert first == second == {"feature_stability": 1.0, "feature_stability_matched": 1.0}
    assert np.isnan(silent["feature_stability"])


def test_stability_by_chance():
    one = [np.ones(1, bool)] * 300
    # In one dimension all directions agree; in two the mean of |cos| over angles is 2 / pi.
    assert stability_by_chance(one[:3], 1, seed=0) == pytest.approx(1)
    assert stability_by_chance(one, 2, seed=0) == pytest.approx(2 / np.pi, abs=0.01)
    assert np.isnan(stability_by_chance(one[:1], 2, seed=0))
    assert np.isnan(stability_by_chance([], 2, seed=0))
