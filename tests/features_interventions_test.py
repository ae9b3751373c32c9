import jax.numpy as jnp
import numpy as np
import pytest

from sae_jax.features import interventions

Z = jnp.array([[1.0, 0.0, -2.0, 0.0], [0.0, 3.0, 4.0, 0.0]])


def decode(z):
    w_dec = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [5.0, 5.0]])
    return z @ w_dec + jnp.array([[0.5, -0.5]])


def test_edits_hand_computed():
    np.testing.assert_array_equal(
        interventions.ablate(Z, [0, 2]), [[0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]]
    )
    np.testing.assert_array_equal(
        interventions.swap(Z, 1, 2), [[1.0, -2.0, 0.0, 0.0], [0.0, 4.0, 3.0, 0.0]]
    )
    np.testing.assert_array_equal(
        interventions.scale(Z, 2, 0.5), [[1.0, 0.0, -1.0, 0.0], [0.0, 3.0, 2.0, 0.0]]
    )


def test_impact_hand_computed():
    got = interventions.impact(decode(Z), decode(interventions.ablate(Z, [1, 2])))
    # Moved by (2, 2) and by (4, 7).
    assert got["mean_abs_difference"] == 15 / 4
    assert got["max_abs_difference"] == 7
    np.testing.assert_allclose(got["mean_l2_difference"], (8**0.5 + 65**0.5) / 2, rtol=1e-6)
    np.testing.assert_allclose(got["max_l2_difference"], 65**0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "edited",
    [
        interventions.swap(Z, 2, 2),
        interventions.ablate(Z, [3]),
        interventions.ablate(Z, []),
        interventions.scale(Z, 1, 1.0),
        interventions.swap(interventions.swap(Z, 0, 1), 0, 1),
    ],
    ids=["identity swap", "inactive latent", "empty set", "factor one", "swap twice"],
)
def test_edits_that_change_nothing(edited):
    got = interventions.impact(decode(Z), decode(edited))
    assert all(value == 0 for value in got.values())


def test_latents_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"latents \[4, -1\] are not among the 4"):
        interventions.ablate(Z, [0, 4, -1])


def feature(number, frequency, kind, description):
    return {
        "feature_id": number,
        "activation_freq": frequency,
        "type": kind,
        "description": description,
    }


def test_swap_pairs_take_the_most_frequent_of_each_within_a_kind():
    features = [
        feature(1, 0.1, "value-specialized", "number 20"),
        feature(2, 0.3, "value-specialized", "number 20"),
        feature(3, 0.2, "value-specialized", "number 100"),
        feature(4, 0.9, "highly-specialized", "addition + number 12"),
        feature(5, 0.2, "operation-specialized", "division"),
        feature(6, 0.2, "general", "mixed patterns"),
    ]
    assert interventions.swap_pairs(features) == [
        {
            "pair_type": "value",
            "feature_a": 2,
            "feature_b": 3,
            "description_a": "number 20",
            "description_b": "number 100",
            "prediction": "Swapping 20↔100 features should change answers",
        }
    ]
