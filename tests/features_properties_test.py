import pytest

from sae_jax.features.properties import parse_numbers, parse_operations, property_matrix
from sae_jax.problems import Problem


@pytest.mark.parametrize(
    ("step", "operations", "numbers"),
    [
        ("48/2=24", {"division"}, {48, 2, 24}),
        ("20*2.5=50", {"multiplication"}, {20, 2.5, 50}),
        (".5*12=6", {"multiplication"}, {0.5, 12, 6}),
        ("-3+5=2", {"addition"}, {3, 5, 2}),
        ("5-8=-3", {"subtraction"}, {5, 8, 3}),
        ("3*-2=-6", {"multiplication"}, {3, 2, 6}),
        ("3--2=5", {"subtraction"}, {3, 2, 5}),
        ("7+-2=5", {"addition"}, {7, 2, 5}),
        ("1,000-20=980", {"subtraction"}, {1000, 20, 980}),
        ("1,234,567.5/1", {"division"}, {1234567.5, 1}),
        ("(1/3)*48=16", {"division", "multiplication"}, {1, 3, 48, 16}),
        ("12-(2+3)=7", {"addition", "subtraction"}, {12, 2, 3, 7}),
        ("20% * $50 = $10", {"multiplication"}, {20, 50, 10}),
        ("0.2 x 50 = 10", {"multiplication"}, {0.2, 50, 10}),
        ("6×7", {"multiplication"}, {6, 7}),
        ("8÷2−1", {"division", "subtraction"}, {8, 2, 1}),
        ("5.+1=6", {"addition"}, {5, 1, 6}),
        ("3*.5", {"multiplication"}, {3, 0.5}),
        ("1,2345", set(), {1, 2345}),
        ("=-5", set(), {5}),
        ("12.0", set(), {12}),
        ("3120+5012", {"addition"}, {3120, 5012}),
        ("well-known sum - no digits", set(), set()),
        ("", set(), set()),
    ],
)
def test_parses(step, operations, numbers):
    assert parse_operations(step) == operations
    assert parse_numbers(step) == numbers


def problem(*steps):
    return Problem(id="p", question="q", answer="a", steps=steps)


def test_property_matrix_hand_computed():
    problems = [problem("10+2=12", "12/4=3"), problem("120-20=100"), problem()]
    matrix, names = property_matrix(problems)
    assert names[:5] == ["addition", "subtraction", "multiplication", "division", "number 12"]
    assert names[5:] == ["number 20", "number 30", "number 50", "number 100"]
    assert matrix.dtype == bool
    assert matrix.astype(int).tolist() == [
        [1, 0, 0, 1, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 1, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_frequent_numbers_are_those_in_1_to_50_percent():
    steps = [("7+0.5=7.5",)] * 60 + [("3*2=6",)] * 40 + [("9-1=8",)] + [()] * 99
    matrix, names = property_matrix([problem(*s) for s in steps], frequent_numbers=True)
    added = [name for name in names[4:] if name.split()[1] not in ("12", "20", "30", "50", "100")]
    # In 60 or 40 of 200 problems; 9, 1 and 8 are in half a percent of them.
    assert added == [f"number {n}" for n in ("0.5", "2", "3", "6", "7", "7.5")]
    assert matrix[:, names.index("number 0.5")].sum() == 60


def test_the_bounds_of_frequent_belong_to_it_and_fixed_numbers_need_not_be():
    # In 101, 100, 2 and 1 of 200 problems.
    num_with = {"2": 101, "3": 100, "7": 2, "9": 1}
    steps = [[step for step, n in num_with.items() if i < n] for i in range(200)]
    matrix, names = property_matrix([problem(*s) for s in steps], frequent_numbers=True)
    assert names[4:] == [f"number {n}" for n in (3, 7, 12, 20, 30, 50, 100)]
    assert matrix[:, 4:].sum(axis=0).tolist() == [100, 2, 0, 0, 0, 0, 0]


def test_property_matrix_without_problems():
    matrix, names = property_matrix([])
    assert (matrix.shape, matrix.dtype) == ((0, len(names)), bool)
