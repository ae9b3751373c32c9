import numpy as np
import pytest

from sae_jax.features.shared_latents import shared_fraction, stability_by_rate

# Rows at 0, 90 and 45 degrees.
A = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
ALL = np.ones(3, bool)


def test_shares_by_hand():
    # 30 degrees off: cosines .866 and .5 with the axes; the pair at 90 - 30 degrees has .866.
    turned = np.array([[3**0.5, 1], [-1, 3**0.5]], np.float32)
    assert shared_fraction([A[:2], turned], [ALL[:2], ALL[:2]]) == 1.0
    # 50 degrees off: the best matching has twice .766 (each with the other's axis).
    angle = np.deg2rad(50)
    far = np.array([[np.cos(angle), np.sin(angle)], [0, -1]], np.float32)
    # Row 1 is the second axis itself, so row 0 is left with the first: .643, which is not shared.
    assert shared_fraction([A[:2], far], [ALL[:2], ALL[:2]]) == 0.5


def test_a_matching_is_one_to_one():
    twice = np.array([[1, 0], [1, 0]], np.float32)
    assert shared_fraction([A[:2], twice], [ALL[:2], ALL[:2]]) == 0.5


def test_dead_latents_do_not_count():
    alive = np.array([True, False, False])
    assert shared_fraction([A, A], [alive, alive]) == 1.0
    assert np.isnan(shared_fraction([A, A], [alive, ~ALL]))
    assert np.isnan(shared_fraction([A], [ALL]))


def test_bins_by_hand():
    other = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    rates = [np.array([0.5, 0.01, 0.0]), np.array([0.5, 0.5, 0.01])]
    rare, frequent = stability_by_rate([A, other], rates, [0.0, 0.1, 1.0])
    # Rare: of A the row at 90 degrees, cosine 0; of the other one that A's first row equals.
    assert rare[:3] == (0.0, 0.1, 2)
    assert rare.cosine == pytest.approx(0.5)
    assert frequent[:3] == (0.1, 1.0, 3)
    assert frequent.cosine == pytest.approx(1.0)


def test_an_empty_bin_has_no_stability():
    rates = [np.full(3, 0.5), np.full(3, 0.5)]
    (empty,) = stability_by_rate([A, A], rates, [0.6, 1.0])
    assert empty.num_latents == 0
    assert np.isnan(empty.cosine)


@pytest.mark.parametrize("edges", [[0.1], [0.1, 0.1], [0.2, 0.1]])
def test_edges_that_do_not_grow_are_named(edges):
    with pytest.raises(ValueError, match="edges are .*; allowed are two or more numbers that grow"):
        stability_by_rate([A, A], [np.ones(3), np.ones(3)], edges)
