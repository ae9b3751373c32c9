"""Generates grade-school problems from the GSM-Symbolic templates that reasoning-gym packages.

Source: Mirzadeh et al. 2024, arXiv:2410.05229; https://github.com/open-thought/reasoning-gym.
"""

import ast
import importlib
import math
import operator
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from random import Random
from typing import Any

from sae_jax.problems import Problem

_PACKAGES = ("reasoning_gym", "reasoning_gym.arithmetic", "reasoning_gym.arithmetic.gsm_symbolic")
_MODULES = ("generators_00_49", "generators_50_99")
# The package itself leaves these out, as needing a fix.
_BROKEN_TEMPLATES = {32, 35, 37, 61, 63, 65, 74, 76, 77, 79, 86, 87, 90, 97, 98}

_CURRENCY_OR_PERCENT = re.compile(r"[$£€¥₹%]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_TIMES = re.compile(r"(?<=[\d)\s])[x×](?=[\s\d(])")
_UNIT = re.compile(r"\s*[/-]?\s*[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NUMBER = r"\d+(?:\.\d+)?"
_OPERAND = rf"\(*{_NUMBER}\)*"
_EXPRESSION_AT_END = re.compile(rf"{_OPERAND}(?:\s*[-+*/]\s*{_OPERAND})+\s*$")
_NUMBER_AT_START = re.compile(rf"\s*(-?{_NUMBER})")

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def generated_problems(num_problems: int, seed: int = 0) -> list[Problem]:
    """Generates distinct problems, each with the arithmetic steps to its answer.

    Args:
      num_problems: number of problems; fewer are the first of more.
      seed: PRNG seed of the generator; the same seed gives the same problems.

    Raises:
      ValueError: if reasoning-gym is not installed.
    """
    templates = _gsm_symbolic_templates()
    problems: dict[str, Problem] = {}
    index = 0
    while len(problems) < num_problems:
        rng = Random(f"{seed}-{index}")
        entry = rng.choice(templates)(rng, 1.0)
        question, steps = entry["question"], arithmetic_steps(entry["metadata"]["answer_cot"])
        if steps and question not in problems:
            problem_id = f"generated-{seed}-{index}"
            problems[question] = Problem(problem_id, question, _shorten(entry["answer"]), steps)
        index += 1
    return list(problems.values())


def arithmetic_steps(text: str) -> tuple[str, ...]:
    """Reads steps such as "6*2=12" off a written-out answer.

    Units, currencies and thousands separators go ("6 days/week x $2,000 = $12,000" gives
    "6*2000=12000"), and an equation stays only if its two sides agree: what is left of an
    expression that was not understood does not pass for a step.
    """
    steps = []
    for line in text.splitlines():
        sides = [_without_units(side) for side in line.split("=")]
        for left, right in zip(sides, sides[1:], strict=False):
            expression, result = _EXPRESSION_AT_END.search(left), _NUMBER_AT_START.match(right)
            if expression and result:
                formula = re.sub(r"\s", "", expression.group())
                value = float(result.group(1))
                if math.isclose(_evaluate(formula), value, rel_tol=1e-4, abs_tol=5e-3):
                    steps.append(f"{_shorten(formula)}={_shorten(result.group(1))}")
    return tuple(steps)


def _without_units(text: str) -> str:
    text = _THOUSANDS.sub("", _CURRENCY_OR_PERCENT.sub("", text)).replace("÷", "/")
    return _UNIT.sub("", _TIMES.sub("*", text))


def _shorten(formula: str) -> str:
    """Writes the 14.0 of a float as 14."""
    return re.sub(r"(\d)\.0+(?!\d)", r"\1", formula)


def _evaluate(formula: str) -> float:
    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        return ast.literal_eval(node)

    try:
        return value(ast.parse(formula, mode="eval").body)
    except (SyntaxError, KeyError, ValueError, ZeroDivisionError):
        return math.nan


def _gsm_symbolic_templates() -> list[Callable[[Random, float], dict[str, Any]]]:
    """Imports the templates without running the `__init__` of the packages around them.

    Those packages import every domain of reasoning-gym, and with them eleven dependencies, one
    of which (pycosat) comes only as C source; the templates need none of them.
    """
    if find_spec("reasoning_gym") is None:
        raise ValueError("generated problems need: pip install --no-deps reasoning-gym")
    stand_ins = []
    for name in _PACKAGES:
        if name not in sys.modules and (spec := find_spec(name)) is not None:
            sys.modules[name] = module_from_spec(spec)
            stand_ins.append(name)
    try:
        modules = [importlib.import_module(f"{_PACKAGES[-1]}.{name}") for name in _MODULES]
    finally:
        for name in stand_ins:
            del sys.modules[name]
    numbered = {
        int(name.removeprefix("generate_")): function
        for module in modules
        for name, function in vars(module).items()
        if name.startswith("generate_")
    }
    return [numbered[n] for n in sorted(numbered.keys() - _BROKEN_TEMPLATES)]
