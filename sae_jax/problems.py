"""Reads and writes word problems and their chain-of-thought steps."""

import codecs
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Attributes:
      id: name that no other problem of a file or store has.
      question: text of the problem.
      answer: final answer, empty where it is unknown.
      steps: chain-of-thought steps such as "48/2=24".
    """

    id: str
    question: str
    answer: str = ""
    steps: tuple[str, ...] = ()


def to_jsonl(problems: Sequence[Problem]) -> str:
    """Writes problems as one JSON object a line."""
    return "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems)


def read_jsonl(file: Path) -> list[Problem]:
    """Reads a store's own `problems.jsonl`."""
    with file.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [Problem(**{**record, "steps": tuple(record["steps"])}) for record in records]


def read_file(file: Path) -> list[Problem]:
    """Reads JSON objects, one a line or laid out otherwise, or one array of them.

    Any byte order mark, line ends and blank lines will do.

    Raises:
      ValueError: if an object is malformed; the error names the file and the line of the first.
    """
    problems: list[Problem] = []
    line_of_id: dict[str, int] = {}
    for number, record in _records(file):
        try:
            problem = parse_problem(record, default_id=f"{file.stem}-{len(problems)}")
            if problem.id in line_of_id:
                raise ValueError(f"id {problem.id!r} is also that of line {line_of_id[problem.id]}")
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        line_of_id[problem.id] = number
        problems.append(problem)
    if not problems:
        raise ValueError(f"{file} holds no problem")
    return problems


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    """Yields the values of a file, or of the one array in it, with the lines they begin in."""
    text = _text(file)
    newlines = [match.start() for match in re.finditer("\n", text)]

    def line(index: int) -> int:
        return bisect_left(newlines, index) + 1

    decoder = json.JSONDecoder()
    opening = start = _skip_space(text, 0)
    is_array, has_ended = text.startswith("[", start), False
    if is_array:
        start = _skip_space(text, start + 1)
        if text.startswith("]", start):
            has_ended, start = True, _skip_space(text, start + 1)
    while start < len(text):
        if has_ended:
            raise ValueError(f"{file}, line {line(start)}: expected nothing after the array")
        number = line(start)
        try:
            record, end = decoder.raw_decode(text, start)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        yield number, record
        start = _skip_space(text, end)
        if is_array and start < len(text):
            if text[start] not in ",]":
                raise ValueError(f"{file}, line {line(start)}: expected ',' or ']' after an object")
            has_ended = text[start] == "]"
            start = _skip_space(text, start + 1)
    if is_array and not has_ended:
        raise ValueError(
            f"{file}, line {line(len(text.rstrip()))}: the array that begins in line "
            f"{line(opening)} does not end"
        )


def _text(file: Path) -> str:
    content = file.read_bytes()
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "UTF-16" if content.startswith(marks) else "UTF-8"
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {number}: not {encoding} text: {error}") from error


def _skip_space(text: str, start: int) -> int:
    return next((i for i in range(start, len(text)) if text[i] not in " \t\r\n"), len(text))


def parse_problem(record: Any, default_id: str) -> Problem:
    """Returns the problem that a JSON object describes, with an id if it has none.

    A GSM8K answer ends in `####` and the final answer, and without `steps` its `<<48/2=24>>`
    contents are the steps (Cobbe et al. 2021, arXiv:2110.14168).

    Raises:
      ValueError: if a field is missing or of another type.
    """
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
    if not (steps is None or isinstance(steps, list) and all(isinstance(s, str) for s in steps)):
        raise ValueError(f"'steps' must be a list of strings, found {steps!r}")
    if given_id is not None and (given_id == "" or type(given_id) not in (str, int, float)):
        raise ValueError(f"'id' must be a string or number, found {given_id!r}")
    for text in (record["question"], answer, str(given_id), *(steps or ())):
        if _HALF_CHARACTER.search(text):
            raise ValueError(f"{text!r} has half a character (a lone surrogate)")
    return Problem(
        id=default_id if given_id is None else str(given_id),
        question=record["question"],
        answer=answer.rpartition("####")[2].strip(),
        steps=tuple(_ANNOTATION.findall(answer) if steps is None else steps),
    )
