"""Prompts: one begin-of-sequence token, one date, and what a model can read."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from extraction_families_test import save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import BOS, VOCAB_SIZE, tiny_tokenizer

from sae_jax.activations.store import ActivationStore
from sae_jax.extraction.answers import evaluate
from sae_jax.extraction.continuous_thoughts import think
from sae_jax.extraction.extract import extract
from sae_jax.extraction.models import load_model
from sae_jax.extraction.patching import PatchedAnswers
from sae_jax.extraction.prompts import chat_text, token_ids
from sae_jax.extraction.token_states import all_token_activations, token_activations
from sae_jax.problems import Problem

ROOT = Path(__file__).resolve().parents[1]

# The opening lines of the two published templates, as far as they print a date.
LLAMA_3_1 = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{{- 'Today Date: ' + date_string + '. ' }}{{- messages[0]['content'] }}"
)
LLAMA_3_2 = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}"
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}\n"
    "{{- 'Today Date: ' + date_string + '. ' }}{{- messages[0]['content'] }}"
)
IN_WORDS = (
    "{%- macro header() -%}Today is {{ strftime_now('%A, %B %-d, %Y, %H:%M') }}.{%- endmacro -%}\n"
    "{%- for message in messages %}{{ header() }} {{ message['content'] }}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tiny_llama_folder):
    return load_model(tiny_llama_folder, device="cpu")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAMA_3_1, f"{BOS}Today Date: 26 Jul 2024. 1+1?"),
        (LLAMA_3_2, f"{BOS}Today Date: 26 Jul 2024. 1+1?"),
        (IN_WORDS, "Today is Friday, July 26, 2024, 00:00. 1+1?"),
        ("\n {{ strftime_now('%Y-%m-%d') }} {{ messages[0]['content'] }}", "\n 2024-07-26 1+1?"),
        ("\n {{ messages[0]['content'] }}", "\n 1+1?"),
    ],
)
def test_a_template_prints_one_date_whatever_the_day(template, expected):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert chat_text(tokenizer, "1+1?") == expected


@settings(max_examples=100, deadline=None)
@given(
    prefix=st.sampled_from(["", BOS, BOS + BOS, BOS + " "]),
    question=st.sampled_from(["1+1?", BOS + "1+1?", "a" + BOS + "b", BOS]),
    kind=st.sampled_from(["template", "chat", "plain", "text"]),
)
def test_a_prompt_begins_with_one_begin_of_sequence_token(prefix, question, kind):
    tokenizer = tiny_tokenizer()
    bos = tokenizer.bos_token_id
    if kind == "chat":
        tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
        ids = token_ids(tokenizer, chat_text(tokenizer, question), add_special_tokens=False)
        text = question
    else:
        text = prefix + question if kind == "template" else question
        ids = token_ids(tokenizer, text)
    rest = text
    while rest.startswith(BOS):
        rest = rest[len(BOS) :]
    assert ids == [bos, *tokenizer(rest, add_special_tokens=False)["input_ids"]]


def test_a_model_reads_one_begin_of_sequence_token(tiny_llama_folder):
    plain = load_model(tiny_llama_folder, device="cpu")
    templated = load_model(tiny_llama_folder, device="cpu", prompt_template=BOS + "Q: {question}")
    assert templated.prompt_ids("1+1?") == plain.prompt_ids("Q: 1+1?")
    assert plain.prompt_ids(BOS + "1+1?") == plain.prompt_ids("1+1?")
    tokenizer = plain.tokenizer
    assert token_ids(tokenizer, BOS + "1+1?") == token_ids(tokenizer, "1+1?")
    assert plain.prompt_ids("1+1?").count(plain.tokenizer.bos_token_id) == 1


class TestSettings:
    def test_they_name_weights_tokenizer_and_rendered_prompt(self, tiny_llama_folder):
        before = load_model(tiny_llama_folder, device="cpu").settings()
        assert load_model(tiny_llama_folder, device="cpu").settings() == before
        for change, key in (
            (lambda m: m.causal_lm.model.layers[1].mlp.up_proj.weight.data[3, 5].add_(1e-6), "w"),
            (lambda m: m.causal_lm.model.rotary_emb.inv_freq[1].mul_(1.001), "w"),
            (lambda m: m.tokenizer.add_tokens(["<new>"]), "t"),
            (lambda m: setattr(m.tokenizer, "chat_template", "{{ messages[0]['content'] }}!"), "r"),
        ):
            model = load_model(tiny_llama_folder, device="cpu")
            change(model)
            after = model.settings()
            changed = [name for name in before if before[name] != after[name]]
            name = {"w": "weights", "t": "tokenizer", "r": "rendered_prompt"}[key]
            assert changed == [f"{name}_sha256"]

    def test_a_chat_templates_date_is_the_same_on_another_day(self, tiny_llama_folder, tmp_path):
        found = []
        for day in ("2024-01-02", "2031-12-30"):
            code = (
                "import sys, datetime as d; import transformers.utils.chat_template_utils as u\n"
                "class Day(d.datetime):\n"
                f"    now = classmethod(lambda cls, tz=None: cls.fromisoformat('{day}'))\n"
                "u.datetime = Day\n"
                "from sae_jax.extraction.models import load_model\n"
                f"model = load_model({tiny_llama_folder!r}, device='cpu')\n"
                "turns = [{'role': 'user', 'content': '?'}]\n"
                f"model.tokenizer.chat_template = {IN_WORDS!r}\n"
                "print(model.tokenizer.apply_chat_template(turns, tokenize=False))\n"
                "print(model.settings()['rendered_prompt_sha256'], model.prompt_ids('1+1?'))\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                cwd=ROOT,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found.append(done.stdout.splitlines())
        assert "2024" in found[0][0]  # what transformers itself prints changes with the day
        assert "2031" in found[1][0]
        assert found[0][1] == found[1][1]


class TestResumingAStore:
    PROBLEMS = [Problem(f"p{i}", f"{i}+{i}=") for i in range(5)]

    def extract(self, model, root, **options):
        options = {"layers": [1], "positions": [0], "progress": False, **options}
        return extract(self.PROBLEMS, model, root, **options)

    def unfinish(self, root, change=lambda manifest: None):
        """What a run that was stopped before its last shard leaves."""
        file = root / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["finished"] = False
        manifest["shards"] = [
            {key: shard[key] for key in ("shape", "rows_per_problem")}
            for shard in manifest["shards"]
        ]
        change(manifest)
        file.write_text(json.dumps(manifest))
        (root / "shards/00000.npy").unlink()

    @pytest.mark.parametrize("finished", [True, False])
    @pytest.mark.parametrize("changed", ["weights", "tokens", "rendered_prompt"])
    def test_another_models_run_is_refused_by_name(
        self, tmp_path, tiny_llama_folder, finished, changed
    ):
        self.extract(load_model(tiny_llama_folder, device="cpu"), tmp_path)
        if not finished:
            self.unfinish(tmp_path)
        other = load_model(tiny_llama_folder, device="cpu")
        if changed == "weights":
            other.causal_lm.model.norm.weight.data[0] += 1e-3
        elif changed == "tokens":
            lower = other.tokenizer.backend_tokenizer
            from tokenizers import normalizers

            lower.normalizer = normalizers.Replace("+", "-")
        else:
            other.tokenizer.chat_template = "{{ messages[0]['content'] }}!"
        with pytest.raises(ValueError, match=f"holds a run with another {changed}_sha256: '"):
            self.extract(other, tmp_path, resume=True)

    @pytest.mark.parametrize("finished", [True, False])
    def test_a_run_of_an_earlier_version_is_refused_by_name(self, tmp_path, model, finished):
        keys = ("weights_sha256", "tokenizer_sha256", "tokens_sha256", "rendered_prompt_sha256")

        def forget(manifest):
            for key in keys:
                del manifest["settings"][key]

        self.extract(model, tmp_path)
        if finished:
            file = tmp_path / "manifest.json"
            manifest = json.loads(file.read_text())
            forget(manifest)
            file.write_text(json.dumps(manifest))
            assert ActivationStore.open(tmp_path).num_rows == 5  # still opens
        else:
            self.unfinish(tmp_path, forget)
        message = "did not record its rendered_prompt_sha256.*--overwrite replaces it"
        with pytest.raises(ValueError, match=message):
            self.extract(model, tmp_path, resume=True)

    def test_the_same_model_goes_on(self, tmp_path, tiny_llama_folder, model):
        before = self.extract(model, tmp_path).fingerprint
        self.unfinish(tmp_path)
        again = load_model(tiny_llama_folder, device="cpu")
        assert self.extract(again, tmp_path, resume=True).fingerprint == before


def with_embedding_of(model, num_tokens):
    """The same model, its vocabulary cut."""
    model.causal_lm.resize_token_embeddings(num_tokens, mean_resizing=False)
    return model


def test_a_token_beyond_the_embedding_is_named(tmp_path, tiny_llama_folder):
    model = with_embedding_of(load_model(tiny_llama_folder, device="cpu"), 60)
    problems = [Problem("fine", "1"), Problem("far", "1}")]
    brace = model.tokenizer("}", add_special_tokens=False)["input_ids"][0]
    assert 60 < brace < VOCAB_SIZE
    message = (
        f"problem far has the token id {brace}, but the embedding of .* has 60 tokens, 0 to 59"
    )
    with pytest.raises(ValueError, match=message):
        extract(problems, model, tmp_path / "store", layers=[0], progress=False)
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match=f"prompt 1 has the token id {brace}"):
        think(model, [[3], [brace]])
    with pytest.raises(ValueError, match=f"prompt 0 has the token id {brace}"):
        token_activations(model, [[brace]], layers=[0], positions=[0])


@pytest.mark.parametrize("others", [[], [Problem("fine", "1+1?", "2")]])
def test_an_empty_prompt_is_named_alone_and_in_a_batch(tmp_path, tiny_llama_folder, others):
    model = load_model(tiny_llama_folder, device="cpu", prompt_template="{question}")
    model.tokenizer.backend_tokenizer.post_processor = None  # adds no token of its own
    from tokenizers import processors

    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    problems = [*others, Problem("blank", "", "3")]
    message = "the prompt of problem blank has no tokens"
    for options in ({}, {"positions": ["all"], "feedback": "none"}):
        with pytest.raises(ValueError, match=message):
            extract(problems, model, tmp_path / "s", layers=[0], progress=False, **options)
    assert not (tmp_path / "s").exists()
    with pytest.raises(ValueError, match=message):
        evaluate(problems, model, progress=False)
    with pytest.raises(ValueError, match=message):
        PatchedAnswers(model, problems, layer=0, position=0).log_probability(None)
    prompts = [[3] for _ in others] + [[]]
    for read in (think, lambda m, p: all_token_activations(m, p, layers=[0])):
        with pytest.raises(ValueError, match=f"prompt {len(others)} has no tokens"):
            read(model, prompts)


def test_prompts_beyond_rotary_positions_bring_a_warning(tmp_path, model, caplog):
    problems = [Problem("short", "1"), Problem("long", "1" * 505), Problem("longer", "1" * 600)]
    with caplog.at_level(logging.WARNING):
        extract(problems[:1], model, tmp_path / "a", layers=[0], progress=False)
        assert not caplog.messages
        extract(problems, model, tmp_path / "b", layers=[0], progress=False)
    (message,) = caplog.messages
    # 505 and the begin-of-sequence token, and positions 0 to 5: exactly as many as there are.
    assert "problem longer has 601 tokens and 6 thoughts follow" in message
    assert "has 512 positions (1 of 3 prompts are too long)" in message


def test_prompts_beyond_absolute_positions_are_refused(tmp_path, model, monkeypatch):
    monkeypatch.setattr(type(model), "_has_rotary_positions", False)
    problems = [Problem("short", "1"), Problem("long", "1" * 506)]
    message = "problem long has 507 tokens and 6 thoughts follow; .* has 512 positions"
    with pytest.raises(ValueError, match=message):
        extract(problems, model, tmp_path / "a", layers=[0], progress=False)
    assert not (tmp_path / "a").exists()


def test_only_families_with_rotary_positions_read_beyond_them(tmp_path, model):
    assert model._has_rotary_positions
    gemma = load_model(save_tiny("gemma3_text", tmp_path), device="cpu")
    assert gemma._has_rotary_positions


def test_rotary_frequencies_stay_in_float32(tiny_llama_folder):
    from sae_jax.extraction.language_model import cast_parameters

    half = load_model(tiny_llama_folder, device="cpu", dtype="bfloat16")
    model = load_model(tiny_llama_folder, device="cpu")
    cast_parameters(model.causal_lm, torch.bfloat16)
    buffers = dict(model.causal_lm.named_buffers())
    assert buffers
    for name, own in half.causal_lm.named_buffers():
        torch.testing.assert_close(buffers[name], own, rtol=0, atol=0)
    assert model.causal_lm.dtype == torch.bfloat16
