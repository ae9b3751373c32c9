import json
import logging
import re
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_jax.extraction.generated import arithmetic_steps, generated_problems
from sae_jax.extraction.problems import load_problems
from sae_jax.problems import Problem

SHARED = Path(__file__).resolve().parents[2] / "shared"

needs_reasoning_gym = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)


def write_lines(file, *lines):
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(file)


def test_gsm8k_answers_give_steps_and_final_answer(tmp_path):
    record = {
        "question": "How many clips?",
        "answer": "In May 48/2 = <<48/2=24>>24 clips.\nIn all <<48+24=72>>72.\n#### 72",
    }
    (problem,) = load_problems(write_lines(tmp_path / "train.jsonl", json.dumps(record)))
    assert problem == Problem("train-0", "How many clips?", "72", ("48/2=24", "48+24=72"))


def test_plain_lines_need_only_a_question(tmp_path):
    lines = [
        '{"question": "Why?"}',
        "",
        '{"id": 7, "question": "1+1?", "steps": ["1+1=2"], "answer": "2"}',
    ]
    problems = load_problems(write_lines(tmp_path / "mine.jsonl", *lines))
    assert problems == [Problem("mine-0", "Why?"), Problem("7", "1+1?", "2", ("1+1=2",))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: expected a JSON object, found list"),
        ('{"prompt": "?"}', r"line 2: expected a non-empty string 'question', found None .*prompt"),
        ('{"question": " "}', "line 2: expected a non-empty string 'question'"),
        ('{"question": "?", "steps": "1+1"}', "line 2: 'steps' must be a list of strings"),
        ('{"question": "?", "answer": 3}', "line 2: 'answer' must be a string, found 3"),
        ('{"question": "?", "id": "a"}', "line 2: id 'a' is also that of line 1"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    file = tmp_path / "bad.jsonl"
    write_lines(file, '{"question": "fine", "id": "a"}', line)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, {message}"):
        load_problems(str(file))


RECORDS = (
    {"id": "a", "question": "Wie viel ist 1+1? \u2028 Süß, \x85 oder?", "answer": "2"},
    {"id": "b", "question": 'line\nbreak, "quotes" and [brackets]', "steps": ["1+1=2"]},
    {"id": "c", "question": "🍎?", "answer": ""},
)
EXPECTED = [
    Problem("a", RECORDS[0]["question"], "2"),
    Problem("b", RECORDS[1]["question"], "", ("1+1=2",)),
    Problem("c", "🍎?"),
]


def as_jsonl(newline="\n", **options):
    return "".join(json.dumps(record, **options) + newline for record in RECORDS)


def as_array(**options):
    return json.dumps(RECORDS, **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        as_jsonl(ensure_ascii=False),
        as_jsonl("\r\n"),
        as_jsonl("\r\n\r\n  \r\n", ensure_ascii=False),
        "\n\n" + as_jsonl() + "\n\t\n",
        as_jsonl().rstrip("\n"),
        as_array(ensure_ascii=False),
        as_array(indent=2).replace("\n", "\r\n"),
        "\n  " + as_array(indent=1, ensure_ascii=False) + "\n",
        as_jsonl(indent=2),
    ],
)
def test_files_of_other_programs_are_read(tmp_path, text, encoding):
    (tmp_path / "p.json").write_bytes(text.encode(encoding))
    assert load_problems(str(tmp_path / "p.json")) == EXPECTED


@settings(max_examples=100, deadline=None)
@given(
    questions=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        min_size=1,
        max_size=5,
    ),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    array=st.booleans(),
    bom=st.booleans(),
)
def test_any_question_is_read_from_any_layout(
    tmp_path_factory, questions, ensure_ascii, indent, array, bom
):
    records = [{"question": question} for question in questions]
    options = {"ensure_ascii": ensure_ascii, "indent": indent}
    parts = [records] if array else records
    text = "\r\n".join(json.dumps(part, **options) for part in parts)
    file = tmp_path_factory.mktemp("problems") / "p.json"
    file.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    assert [problem.question for problem in load_problems(str(file))] == questions


def test_what_pandas_writes_for_nothing_is_nothing(tmp_path):
    lines = ['{"id": null, "question": "1+1?", "answer": null, "steps": null}'] * 2
    first, second = load_problems(write_lines(tmp_path / "p.jsonl", *lines))
    assert first == Problem("p-0", "1+1?")
    assert second.id == "p-1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n {"question": "a"},\n\n {"question": 3}\n]', "line 4: expected a non-empty string"),
        ('[\n {"question": "a"}\n {"question": "b"}\n]', "line 3: expected ',' or ']' after"),
        ('[\n {"question": "a"},\n]', "line 3: Expecting value"),
        ('[\n {"question": "a"},\n', "line 2: the array that begins in line 1 does not end"),
        ('[{"question": "a"}]\n{"question": "b"}', "line 2: expected nothing after the array"),
        ('{"question": "a"} {"question": 3}', "line 1: expected a non-empty string"),
        ('{"question": "a"}\n{"question": "b"\n', "line 2: Expecting ',' delimiter"),
        ('{"question": "a"},\n{"question": "b"}', "line 1: Expecting value"),
        ('{"question": "a"}\n"b"', "line 2: expected a JSON object, found str"),
        ('{"question": "a"}\nnull', "line 2: expected a JSON object, found NoneType"),
        ('{"question": "a", "id": true}', "line 1: 'id' must be a string or number, found True"),
        ('{"question": "a", "id": [1]}', "line 1: 'id' must be a string or number, found"),
        ('{"question": "a", "id": ""}', "line 1: 'id' must be a string or number, found ''"),
        ('{"question": "\\ud800?"}', "line 1: '\\ud800?' has half a character"),
        ('{"question": "a", "steps": ["1", 2]}', "line 1: 'steps' must be a list of strings"),
        ('{"question": ["a", "b"]}', "line 1: expected a non-empty string 'question', found"),
        ("question,answer\n1+1?,2", "line 1: Expecting value"),
        ("", "holds no problem"),
        ("[]", "holds no problem"),
        ("\ufeff", "holds no problem"),
    ],
)
def test_a_malformed_record_is_named_by_its_line(tmp_path, text, message):
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_problems(str(file))
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_line_that_is_not_text_is_named(tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"question": "fine"}\n{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: not UTF-8"):
        load_problems(str(file))


def test_ids_do_not_depend_on_how_many_are_read(tmp_path):
    file = write_lines(tmp_path / "p.jsonl", *[f'{{"question": "{i}?"}}' for i in range(5)])
    assert load_problems(file, 3) == load_problems(file)[:3]


def test_more_problems_than_there_are_is_an_error(tmp_path):
    file = write_lines(tmp_path / "p.jsonl", '{"question": "?"}')
    with pytest.raises(ValueError, match="has 1 problems; 2 were asked for"):
        load_problems(file, 2)


@pytest.mark.parametrize(
    ("source", "num_problems", "message"),
    [
        ("nowhere.jsonl", None, "no problems at 'nowhere.jsonl'; allowed: a JSONL or JSON file"),
        ("generated", None, "give num_problems"),
        ("generated", 0, "num_problems is 0"),
    ],
)
def test_wrong_sources(source, num_problems, message):
    with pytest.raises(ValueError, match=message):
        load_problems(source, num_problems)


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no problem"):
        load_problems(write_lines(tmp_path / "p.jsonl", "", ""))


def test_repeated_questions_are_reported(tmp_path, caplog):
    file = write_lines(
        tmp_path / "p.jsonl", '{"question": "a"}', '{"question": "b"}', '{"question": "a"}'
    )
    with caplog.at_level(logging.WARNING):
        assert len(load_problems(file)) == 3
    assert caplog.messages == ["problem p-2 repeats the question of problem p-0"]


def test_the_hub_data_set_is_read_through_datasets(monkeypatch):
    rows = [{"question": "1+1?", "answer": "<<1+1=2>>2\n#### 2"}]
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return rows

    stand_in = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    assert load_problems("openai/gsm8k") == [Problem("train-0", "1+1?", "2", ("1+1=2",))]
    assert calls == [(("openai/gsm8k", "main"), {"split": "train"})]


def test_the_hub_data_set_without_datasets_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        load_problems("openai/gsm8k")


def test_all_of_gsm8k():
    if not SHARED.is_dir():
        pytest.skip("the supplied problems are not beside the project")
    problems = load_problems(str(SHARED / "data/gsm8k/train.jsonl"))
    assert len(problems) == 7473
    assert problems[0].steps == ("48/2=24", "48+24=72")
    assert problems[7472].answer == "50"
    assert len({problem.id for problem in problems}) == 7473


@needs_reasoning_gym
def test_generated_problems_are_distinct_stable_and_worked_out():
    problems = generated_problems(200, seed=1)
    assert len({problem.question for problem in problems}) == 200
    assert len({problem.id for problem in problems}) == 200
    assert problems[:50] == generated_problems(50, seed=1)
    assert problems[:50] != generated_problems(50, seed=2)
    for operator in "+-*/":
        assert sum(any(operator in s for s in p.steps) for p in problems) >= 20
    # The last step of most answers is the answer; some say it without an equation.
    ends = [float(p.steps[-1].split("=")[1]) == float(p.answer) for p in problems]
    assert sum(ends) > 150


@needs_reasoning_gym
def test_every_generated_step_is_a_true_equation():
    for problem in generated_problems(200, seed=3):
        for step in problem.steps:
            expression, result = step.split("=")
            assert set(expression) <= set("0123456789.+-*/()")
            assert eval(expression) == pytest.approx(float(result), rel=1e-4, abs=5e-3)


@needs_reasoning_gym
def test_the_rest_of_reasoning_gym_stays_importable():
    generated_problems(1)
    assert "reasoning_gym" not in sys.modules or hasattr(
        sys.modules["reasoning_gym"], "__version__"
    )


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("He earns £195/day * 12 days/month = £2340/month", ("195*12=2340",)),
        ("The fee is $400,000 x 8/100 = $32,000.", ("400000*8/100=32000",)),
        ("She has 4 balls. Then 2 * (3 + 4) = 14 more.", ("2*(3+4)=14",)),
        ("Thus, T = 205 - 143 = 62 balls", ("205-143=62",)),
        ("12 ÷ 4 = 3 times", ("12/4=3",)),
        ("14.0 - 2 = 12.0 eggs", ("14-2=12",)),
        ("7 + 14.5 = 21.5\nthen 21.5*2 = 43", ("7+14.5=21.5", "21.5*2=43")),
        ("the other 80% = 40 eggs", ()),
        ("50% * 50% = 25%", ()),
        ("2 + 2 = 5", ()),
        ("5 / 0 = 5", ()),
        ("We get 2x+40=100", ()),
    ],
)
def test_steps_are_read_off_written_answers(text, steps):
    assert arithmetic_steps(text) == steps
