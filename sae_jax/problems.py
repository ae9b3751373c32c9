"""Word problems and their chain-of-thought steps, as files hold them."""

import codecs
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_FINAL_ANSWER = "####"
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Problem:
    """One word problem; `steps` are its chain-of-thought steps such as "48/2=24"."""

    id: str
    question: str
    answer: str = ""
    steps: tuple[str, ...] = ()


def to_jsonl(problems: Sequence[Problem]) -> str:
    """Serializes problems, one JSON object a line."""
    return "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems)


def read_jsonl(file: Path) -> list[Problem]:
    """Reads a store's own `problems.jsonl`."""
    with file.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [Problem(**{**record, "steps": tuple(record["steps"])}) for record in records]


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


def parse_problem(record: Any, default_id: str) -> Problem:
    """The problem that a JSON object describes, with an id for one that has none.

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
