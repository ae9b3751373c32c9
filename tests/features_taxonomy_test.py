import pytest

from sae_jax.features.taxonomy import classify_patterns, detect_patterns


def test_patterns_hand_computed():
    texts = ["1+1", "1+1", "2*3 sum", "7-2", "7-2", "500", "x1200", "2000", "12", "12", "12"]
    # Addition in 3; subtraction in 2 only; round numbers in 500, x1200 ("200") and 2000
    # ("200"); "12" in x1200 and three more: 4, of which 5 are needed; "20" in 2.
    assert detect_patterns(texts) == ["addition", "round_numbers"]
    assert detect_patterns([*texts, "12"]) == ["addition", "round_numbers", "number_12"]
    assert detect_patterns(["4/2"] * 2) == []


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], ("unknown", "unknown")),
        (["addition"], ("operation-level", "medium")),
        (["addition", "division"], ("operation-level", "high")),
        (["round_numbers"], ("value-level", "medium")),
        (["round_numbers", "number_12"], ("value-level", "high")),
        (["addition", "division", "number_12"], ("mixed", "medium")),
    ],
)
def test_levels(patterns, expected):
    assert classify_patterns(patterns) == expected
