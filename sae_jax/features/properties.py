"""Properties of a problem: the operations and numbers of its solution, parsed from its steps."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sae_jax.problems import Problem

OPERATIONS = ("addition", "subtraction", "multiplication", "division")
NUMBERS = (12, 20, 30, 50, 100)

_OPERATION_OF = {
    "+": "addition",
    "-": "subtraction",
    "\N{MINUS SIGN}": "subtraction",
    "*": "multiplication",
    "x": "multiplication",
    "\N{MULTIPLICATION SIGN}": "multiplication",
    "/": "division",
    "\N{DIVISION SIGN}": "division",
}
_SYMBOLS = "".join(re.escape(symbol) for symbol in _OPERATION_OF)
# An operator stands between two operands. Elsewhere + and - are signs, as in "-3+5" or "2*-4".
_OPERATOR = re.compile(rf"(?<=[\d.)%])\s*([{_SYMBOLS}])(?=\s*[\d.($+\-\N{{MINUS SIGN}}])")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+")


def parse_operations(step: str) -> set[str]:
    """The operations of a step such as "20*2.5=50"; a sign is not an operation."""
    return {_OPERATION_OF[symbol] for symbol in _OPERATOR.findall(step)}


def parse_numbers(step: str) -> set[float]:
    """The numbers of a step as values, so that "12", "12.0" and "-12" all contain 12."""
    return {float(number.replace(",", "")) for number in _NUMBER.findall(step)}


def property_matrix(
    problems: Sequence[Problem], *, frequent_numbers: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Which problem has which property.

    Args:
      problems: n problems with their steps.
      frequent_numbers: whether to add every number found in 1-50 % of the problems to
        the fixed ones (12, 20, 30, 50 and 100).

    Returns:
      A matrix, bool `[n, P]`, and the names of the P properties: the four operations, then
      "number 12" and so on in ascending order.
    """
    operations = [set().union(*map(parse_operations, problem.steps)) for problem in problems]
    numbers = [set().union(*map(parse_numbers, problem.steps)) for problem in problems]
    wanted: set[float] = set(NUMBERS)
    if frequent_numbers:
        counts = Counter(number for found in numbers for number in found)
        wanted |= {n for n, count in counts.items() if 0.01 <= count / len(problems) <= 0.5}
    columns = [[name in found for found in operations] for name in OPERATIONS]
    columns += [[number in found for found in numbers] for number in sorted(wanted)]
    names = [*OPERATIONS, *(f"number {number:.15g}" for number in sorted(wanted))]
    return np.array(columns, dtype=bool).T.reshape(len(problems), len(names)), names
