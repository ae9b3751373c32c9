import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_jax.features.matched_controls import NUM_NEAREST, matched_controls


def test_each_control_is_among_the_ten_nearest():
    """Traits are positions on a line, so that the nearest are known by hand."""
    traits = np.arange(100.0)[:, None]
    sets = matched_controls(np.array([50]), traits, np.ones(100, bool), 400, seed=0)
    # 50 itself is never drawn: five on either side are nearest.
    assert sorted(set(sets[:, 0])) == [45, 46, 47, 48, 49, 51, 52, 53, 54, 55]
    counts = np.unique(sets, return_counts=True)[1]
    assert counts.min() > 15 and counts.max() < 75  # 40 expected of each


def test_traits_count_in_units_of_their_deviation():
    """The second trait is spread as the first, in units a million times as large."""
    first = np.tile(np.arange(20.0), 20)
    second = 1e6 * np.repeat(np.arange(20.0), 20)
    chosen = 10 * 20 + 10
    sets = matched_controls(
        np.array([chosen]), np.stack([first, second], axis=1), np.ones(400, bool), 300, seed=0
    )
    offsets = {(i % 20 - 10, i // 20 - 10) for i in sets[:, 0].tolist()}
    # The eight around it, and two of the four that are two steps away.
    around = {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)} - {(0, 0)}
    assert around < offsets and len(offsets) == NUM_NEAREST
    assert all(abs(a) + abs(b) == 2 and 0 in (a, b) for a, b in offsets - around)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 8), st.integers(1, 4))
def test_sets_are_distinct_candidates(seed, num_chosen, num_sets):
    rng = np.random.default_rng(seed)
    chosen = rng.choice(40, num_chosen, replace=False)
    candidates = rng.random(40) < 0.6
    traits = np.stack([rng.normal(size=40), np.ones(40)], axis=1)
    traits[~candidates & ~np.isin(np.arange(40), chosen)] = np.nan
    sets = matched_controls(chosen, traits, candidates, num_sets, seed=seed)
    assert sets.shape == (num_sets, num_chosen)
    assert candidates[sets].all() and not np.isin(sets, chosen).any()
    assert all(len(set(drawn)) == num_chosen for drawn in sets.tolist())
    again = matched_controls(chosen, traits, candidates, num_sets, seed=seed)
    np.testing.assert_array_equal(sets, again)


def test_bad_input_is_named():
    traits = np.zeros((5, 1))
    with pytest.raises(ValueError, match="3 latents need as many controls, found 2"):
        matched_controls(np.arange(3), traits, np.ones(5, bool), 1, seed=0)
    traits[[1, 4]] = -np.inf
    with pytest.raises(ValueError, match=r"latents \[1, 4\] are not finite"):
        matched_controls(np.array([1]), traits, np.ones(5, bool), 1, seed=0)
