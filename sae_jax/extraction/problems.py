"""Word problems and their chain-of-thought steps, from files, the hub or a generator."""

import codecs
import json
import logging
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_jax.extraction.generated import generated_problems
from sae_jax.store import Problem

GENERATED = "generated"
GSM8K_HUB_ID = "openai/gsm8k"

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_FINAL_ANSWER = "####"
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\r\n]*")

_logger = logging.getLogger(__name__)


def load_problems(source: str, num_problems: int | None = None, seed: int = 0) -> list[Problem]:
    """Loads problems, in a fixed order and with ids that do not depend on `num_problems`.

    Args:
      source: a JSONL or JSON file of GSM8K (`question`, `answer`) or of `question` with optional
        `steps`, `answer` and `id`, null being none; "openai/gsm8k", its training split from
        the hub; or "generated".
      num_problems: how many, from the first; all of them if None.
      seed: of the generated problems.

    Raises:
      ValueError: if a line is malformed (naming file and line), or the source has too few.
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
    _report_duplicates(problems)
    return problems


def read_file(file: Path) -> list[Problem]:
    """Reads JSON objects, one a line or laid out otherwise, or one array of them.

    Byte order marks, line ends and blank lines are as the program that wrote the file likes them.

    Raises:
      ValueError: naming file and line of the first malformed object.
    """
    problems: list[Problem] = []
    line_of_id: dict[str, int] = {}
    for number, record in _records(file):
        try:
            problem = _parse(record, default_id=f"{file.stem}-{len(problems)}")
            if problem.id in line_of_id:
                raise ValueError(f"id {problem.id!r} is also that of line {line_of_id[problem.id]}")
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        line_of_id[problem.id] = number
        problems.append(problem)
    if not problems:
        raise ValueError(f"{file} holds no problem")
    return problems


def annotated_steps(answer: str) -> tuple[str, ...]:
    """The `<<48/2=24>>` contents of a GSM8K answer (Cobbe et al. 2021, arXiv:2110.14168)."""
    return tuple(_ANNOTATION.findall(answer))


def final_answer(answer: str) -> str:
    """What follows GSM8K's `####`, or the whole answer where there is none."""
    return answer.rpartition(_FINAL_ANSWER)[2].strip()


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file, or of the one array in it, with the lines that they begin in."""
    text = _text(file)
    newlines = [match.start() for match in re.finditer("\n", text)]

    def line(index: int) -> int:
        return bisect_left(newlines, index) + 1

    decoder = json.JSONDecoder()
    start = _skip_space(text, 0)
    is_array = text.startswith("[", start)
    if is_array:
        opening = line(start)
        start = _skip_space(text, start + 1)
        if text.startswith("]", start):
            return
    while start < len(text):
        number = line(start)
        try:
            record, end = decoder.raw_decode(text, start)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        yield number, record
        start = _skip_space(text, end)
        if not is_array:
            continue
        if text.startswith("]", start):
            start = _skip_space(text, start + 1)
            if start < len(text):
                raise ValueError(f"{file}, line {line(start)}: expected nothing after the array")
            return
        if start < len(text) and text[start] != ",":
            raise ValueError(f"{file}, line {line(start)}: expected ',' or ']' after an object")
        start = _skip_space(text, start + 1)
    if is_array:
        last = line(len(text.rstrip()))
        raise ValueError(
            f"{file}, line {last}: the array that begins in line {opening} does not end"
        )


def _text(file: Path) -> str:
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, name = "utf-16", "UTF-16"
    else:
        encoding, name = "utf-8-sig", "UTF-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {number}: not {name} text: {error}") from error


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return start if match is None else match.end()


def _parse(record: Any, default_id: str) -> Problem:
    if not isinstance(record, Mapping):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    if not isinstance(record.get("question"), str) or not record["question"].strip():
        raise ValueError(
            f"expected a non-empty string 'question', found {record.get('question')!r} "
            f"among the keys {sorted(record)}"
        )
    answer, steps, given_id = record.get("answer"), record.get("steps"), record.get("id")
    answer = "" if answer is None else answer
    if not isinstance(answer, str):
        raise ValueError(f"'answer' must be a string, found {answer!r}")
    if steps is not None and not _is_list_of_strings(steps):
        raise ValueError(f"'steps' must be a list of strings, found {steps!r}")
    if given_id is not None and (given_id == "" or type(given_id) not in (str, int, float)):
        raise ValueError(f"'id' must be a string or number, found {given_id!r}")
    for text in (record["question"], answer, str(given_id), *(steps or ())):
        if _HALF_CHARACTER.search(text):
            raise ValueError(f"{text!r} has half a character (a lone surrogate)")
    return Problem(
        id=default_id if given_id is None else str(given_id),
        question=record["question"],
        answer=final_answer(answer),
        steps=annotated_steps(answer) if steps is None else tuple(steps),
    )


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read_hub() -> list[Problem]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{GSM8K_HUB_ID!r} needs the package `datasets`: pip install datasets"
        ) from error
    rows: Iterable[Mapping[str, str]] = datasets.load_dataset(GSM8K_HUB_ID, "main", split="train")
    return [_parse(row, default_id=f"train-{i}") for i, row in enumerate(rows)]


def _report_duplicates(problems: Sequence[Problem]) -> None:
    first_id: dict[str, str] = {}
    for problem in problems:
        first = first_id.setdefault(problem.question, problem.id)
        if first != problem.id:
            _logger.warning("problem %s repeats the question of problem %s", problem.id, first)
