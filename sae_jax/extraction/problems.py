"""Loads word problems by the name of their source: a file, the hub or a generator."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from sae_jax.extraction.generated import generated_problems
from sae_jax.problems import Problem, parse_problem, read_file

GENERATED = "generated"
GSM8K_HUB_ID = "openai/gsm8k"

_logger = logging.getLogger(__name__)


def load_problems(source: str, num_problems: int | None = None, seed: int = 0) -> list[Problem]:
    """Loads problems, in a fixed order and with ids that do not depend on `num_problems`.

    Args:
      source: a JSONL or JSON file whose records have a `question` and optional `answer`, `steps`
        and `id`, where null stands for none, as GSM8K's do; "openai/gsm8k" for its training
        split from the hub; or "generated".
      num_problems: number of problems to take, from the first on; all of them if None.
      seed: PRNG seed of the generated problems.

    Raises:
      ValueError: if a record is malformed, when the error names file and line, or the source
        has too few.
    """
    if num_problems is not None and num_problems < 1:
        raise ValueError(f"num_problems is {num_problems}; it must be at least 1")
    if source == GENERATED:
        if num_problems is None:
            raise ValueError("generated problems have no natural number: give num_problems")
        return generated_problems(num_problems, seed)
    if source == GSM8K_HUB_ID:
        problems = _read_hub()
    elif Path(source).is_file():
        problems = read_file(Path(source))
    else:
        raise ValueError(
            f"no problems at {source!r}; "
            f"allowed: a JSONL or JSON file, {GSM8K_HUB_ID!r} or {GENERATED!r}"
        )
    if num_problems is not None and num_problems > len(problems):
        raise ValueError(f"{source} has {len(problems)} problems; {num_problems} were asked for")
    problems = problems[:num_problems]
    first_id: dict[str, str] = {}
    for problem in problems:
        first = first_id.setdefault(problem.question, problem.id)
        if first != problem.id:
            _logger.warning("problem %s repeats the question of problem %s", problem.id, first)
    return problems


def _read_hub() -> list[Problem]:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{GSM8K_HUB_ID!r} needs the package `datasets`: pip install datasets"
        ) from error
    rows: Iterable[Mapping[str, str]] = load_dataset(GSM8K_HUB_ID, "main", split="train")
    return [parse_problem(row, default_id=f"train-{i}") for i, row in enumerate(rows)]
