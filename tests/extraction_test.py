import json
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import D_IN, NUM_LAYERS

from sae_jax.activations.store import ActivationStore
from sae_jax.extraction import extract as extract_module
from sae_jax.extraction.continuous_thoughts import thought_activations
from sae_jax.extraction.extract import batches, extract
from sae_jax.extraction.models import load_model
from sae_jax.extraction.prompts import token_ids
from sae_jax.problems import Problem

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "experiments" / "extract_activations.py"
LAYERS = tuple(range(NUM_LAYERS))


def make_problems(num_problems):
    return [
        Problem(f"p{i}", "How many are " + "1+" * (i * 7 % 11) + f"{i}?", str(i), ("1+1=2",))
        for i in range(num_problems)
    ]


@pytest.fixture(scope="module")
def model(tiny_llama_folder):
    return load_model(tiny_llama_folder, device="cpu")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(extract_module, "_MAX_SHARD_SIZE", 8)


def files_of(root):
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in Path(root).rglob("*")
        if file.is_file()
    }


def test_the_store_holds_every_problem_layer_and_position(tmp_path, model, small_shards):
    problems = make_problems(21)
    store = extract(
        problems,
        model,
        tmp_path,
        layers=LAYERS,
        batch_size=4,
        storage_dtype="float32",
        progress=False,
    )
    assert store.problems == problems
    assert len(store.manifest["shards"]) == 3
    assert store.manifest["settings"]["feedback"] == "soft"
    for row in (0, 7, 8, 20):
        prompt = model.prompt_ids(problems[row].question)
        alone = thought_activations(model, [prompt], layers=LAYERS)[:, :, 0]
        for layer in LAYERS:
            for position in range(6):
                np.testing.assert_allclose(
                    store.select(layer, position).activations[row],
                    alone[layer, position],
                    rtol=1e-5,
                    atol=1e-5,
                )


def test_tokens_of_the_prompt_without_thoughts(tmp_path, model, tiny_llama_folder):
    problems = make_problems(5)
    store = extract(
        problems,
        model,
        tmp_path,
        layers=[1],
        positions=[-1, 2],
        feedback="none",
        storage_dtype="float32",
        progress=False,
    )
    for row, problem in enumerate(problems):
        ids = torch.tensor([model.prompt_ids(problem.question)])
        states = model.causal_lm(ids, output_hidden_states=True).hidden_states[2][0].detach()
        for position in (-1, 2):
            np.testing.assert_allclose(
                store.select(1, position).activations[row], states[position], rtol=1e-5, atol=1e-5
            )


def test_all_tokens_are_rows_of_their_problem(tmp_path, model, small_shards):
    problems = make_problems(13)
    store = extract(
        problems,
        model,
        tmp_path,
        layers=[0, 2],
        positions=["all"],
        feedback="none",
        batch_size=4,
        storage_dtype="float32",
        progress=False,
    )
    counts = [len(token_ids(model.tokenizer, problem.question)) for problem in problems]
    selection = store.select(2, "all")
    assert selection.activations.shape == (sum(counts), D_IN)
    assert [p.id for p in selection.problems] == [
        p.id for p, count in zip(problems, counts, strict=True) for _ in range(count)
    ]
    start = sum(counts[:9])
    ids = torch.tensor([token_ids(model.tokenizer, problems[9].question)])
    expected = model.causal_lm(ids, output_hidden_states=True).hidden_states[-1][0].detach()
    np.testing.assert_allclose(
        selection.activations[start : start + counts[9]], expected, rtol=1e-5, atol=1e-5
    )


def test_a_finished_store_is_reused_and_another_run_refused(tmp_path, model):
    problems = make_problems(5)
    options = {"layers": [1], "positions": [3], "progress": False}
    extract(problems, model, tmp_path, **options)
    before = files_of(tmp_path)
    extract(problems, model, tmp_path, resume=True, **options)
    assert files_of(tmp_path) == before
    with pytest.raises(ValueError, match="finished store.*--resume.*--overwrite"):
        extract(problems, model, tmp_path, **options)
    with pytest.raises(ValueError, match="another feedback: 'soft' there, 'hidden' now"):
        extract(problems, model, tmp_path, resume=True, feedback="hidden", **options)
    with pytest.raises(ValueError, match="another num_problems: 5 there, 4 now"):
        extract(problems[:4], model, tmp_path, resume=True, **options)
    assert files_of(tmp_path) == before
    assert extract(problems[:4], model, tmp_path, overwrite=True, **options).num_rows == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [1, 3]}, r"layers \[3\] are not in .*, which has 0 to 2"),
        ({"layers": []}, "at least one problem, one layer and one position"),
        ({"positions": ["all"]}, "feedback 'none' allows tokens"),
        ({"positions": [-1]}, "continuous thoughts have positions 0, 1"),
        ({"positions": [0, "all"], "feedback": "none"}, "token indices, or 'all' alone"),
        ({"positions": [400], "feedback": "none"}, "position 400 is beyond problem p0, .* tokens"),
        ({"feedback": "codi"}, "needs a CODI checkpoint"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"storage_dtype": "int8"}, "storage dtype is 'int8'"),
    ],
)
def test_wrong_requests_write_nothing(tmp_path, model, options, message):
    arguments = {"layers": [1], "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        extract(make_problems(2), model, tmp_path / "store", **arguments)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/model", "no model could be loaded from 'nowhere/model'"),
        ("nowhere.gguf", "there is no such GGUF file"),
    ],
)
def test_a_model_that_is_not_there(monkeypatch, source, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        load_model(source)


def test_wrong_model_options(tiny_llama_folder):
    with pytest.raises(ValueError, match="dtype is 'int4'; allowed: float32, bfloat16"):
        load_model(tiny_llama_folder, dtype="int4")
    with pytest.raises(ValueError, match="prompt template 'Q:' has no {question}"):
        load_model(tiny_llama_folder, device="cpu", prompt_template="Q:")


def test_an_untrained_model_has_the_architecture_and_none_of_the_weights(tiny_llama_folder):
    trained = load_model(tiny_llama_folder, device="cpu")
    first, again, other = (
        load_model(tiny_llama_folder, device="cpu", untrained_seed=seed) for seed in (1, 1, 2)
    )
    assert first.name == f"{tiny_llama_folder}, untrained with seed 1"
    weights = [dict(model.causal_lm.named_parameters()) for model in (trained, first, again, other)]
    for name, weight in weights[0].items():
        assert weights[1][name].shape == weight.shape
        torch.testing.assert_close(weights[1][name], weights[2][name], rtol=0, atol=0)
        if weight.ndim == 2:  # Norms start at one.
            assert not torch.equal(weights[1][name], weight)
            assert not torch.equal(weights[1][name], weights[3][name])
    hashes = {model.settings()["weights_sha256"] for model in (trained, first, other)}
    assert len(hashes) == 3


def test_a_prompt_template_overrides_the_chat_template(tiny_llama_folder):
    plain, templated = (
        load_model(tiny_llama_folder),
        load_model(tiny_llama_folder, prompt_template="Q: {question} A:"),
    )
    assert plain.prompt_ids("1+1?") == plain.tokenizer("1+1?")["input_ids"]
    assert templated.prompt_ids("1+1?") == plain.tokenizer("Q: 1+1? A:")["input_ids"]
    plain.tokenizer.chat_template = "{{bos_token}}<{{messages[0]['content']}}>"
    assert plain.prompt_ids("1+1?") == plain.tokenizer("<1+1?>")["input_ids"]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=80),
    batch_size=st.integers(1, 40),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_batches_hold_every_problem_once_within_their_limits(lengths, batch_size, device):
    prompts = [[0] * length for length in lengths]
    found = list(batches(range(len(prompts)), prompts, batch_size, torch.device(device)))
    in_order = [problem for batch in found for problem in batch]
    assert sorted(in_order) == list(range(len(prompts)))
    assert [lengths[problem] for problem in in_order] == sorted(lengths)
    for batch, following in zip(found, [*found[1:], None], strict=True):
        longest = lengths[batch[-1]]
        assert len(batch) <= batch_size
        assert device == "cuda" or len(batch) == 1 or len(batch) * longest <= 3000
        if following:  # one more would have been too many
            more = (len(batch) + 1) * lengths[following[0]]
            assert len(batch) == batch_size or (device == "cpu" and more > 3000)


def extract_in_child(tiny_llama_folder, output):
    """What the killed process runs: 12 shards of two problems."""
    extract_module._MAX_SHARD_SIZE = 2
    model = load_model(tiny_llama_folder, device="cpu")
    options = {"layers": LAYERS, "batch_size": 2, "resume": True, "progress": False}
    extract(make_problems(24), model, output, **options)


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(tmp_path, tiny_llama_folder, num_kills):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sae_jax.extraction.extract"])

    def start(output):
        process = context.Process(target=extract_in_child, args=(tiny_llama_folder, output))
        process.start()
        return process

    start(tmp_path / "warm_up").join()
    began = time.monotonic()
    start(tmp_path / "whole").join()
    duration = time.monotonic() - began
    whole = files_of(tmp_path / "whole")
    rng = random.Random(0)
    shards_at_kill = []
    for kill in range(num_kills):
        output = tmp_path / f"killed_{kill}"
        process = start(output)
        time.sleep(rng.uniform(0.2, 1) * duration)
        process.kill()
        process.join()
        shards_at_kill.append(len(list(output.glob("shards/*.npy"))))
        start(output).join()
        assert files_of(output) == whole, f"after kill {kill} at {shards_at_kill[-1]} shards"
        ActivationStore.open(output).verify()
    if num_kills == 20:  # enough for some to have fallen among the shards
        assert any(0 < num_shards < 12 for num_shards in shards_at_kill), shards_at_kill


def run_script(*arguments, torchrun=()):
    launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


def write_problems(file, problems):
    lines = [json.dumps({"id": p.id, "question": p.question, "answer": p.answer}) for p in problems]
    file.write_text("\n".join(lines))
    return file


def test_two_ranks_write_the_store_of_one(tmp_path, tiny_llama_folder, model):
    # Three shards of 512 problems, so that both ranks have work.
    problems = write_problems(tmp_path / "problems.jsonl", make_problems(1100))
    arguments = [f"--problems={problems}", f"--model={tiny_llama_folder}", "--batch_size=64"]
    arguments += ["--feedback=hidden", "--positions=" + ",".join(map(str, range(1, 9)))]
    one = run_script(*arguments, f"--output={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    two = run_script(
        *arguments,
        f"--output={tmp_path / 'two'}",
        torchrun=["--nproc_per_node=2", "--master_port=29517"],
    )
    assert two.returncode == 0, two.stderr
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    store = ActivationStore.open(tmp_path / "two")
    assert len(store.manifest["shards"]) == 3
    assert store.layers == LAYERS
    assert store.positions == tuple(range(1, 9))
    assert "1100 rows of 16 values at 3 layers and 8 positions" in one.stdout


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        ("last", {"last": -1}),
        ("-1,-2", {"-2": -2, "last": -1}),
        ("all", {"all": "all"}),
        ("1", {"1": 1}),
    ],
)
def test_the_words_that_make_a_store_also_read_it(tmp_path, tiny_llama_folder, words, stored):
    problems = write_problems(tmp_path / "problems.jsonl", make_problems(3))
    result = run_script(
        f"--problems={problems}",
        f"--model={tiny_llama_folder}",
        "--layers=1",
        f"--positions={words}",
        f"--output={tmp_path / 'store'}",
    )
    assert result.returncode == 0, result.stderr
    store = ActivationStore.open(tmp_path / "store")
    assert set(store.positions) == set(stored.values())
    for word, position in stored.items():
        assert store.parse_position(word) == position
        store.select(1, store.parse_position(word))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--positions=first", "--positions=first; allowed: integers, 'last' or 'all' alone"),
        ("--layers=1.5", "--layers=1.5; allowed: integers"),
    ],
)
def test_the_script_names_a_flag_that_is_no_number(tmp_path, tiny_llama_folder, flag, message):
    problems = write_problems(tmp_path / "problems.jsonl", make_problems(1))
    arguments = [f"--problems={problems}", f"--model={tiny_llama_folder}", flag]
    result = run_script(*arguments, f"--output={tmp_path / 'store'}")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == f"error: {message}"


def test_the_script_says_what_is_wrong_in_one_line(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "1+1?"}\n{"question": 3}\n')
    result = run_script(f"--problems={bad}", f"--output={tmp_path / 'store'}")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(f"error: {bad}, line 2: ")
    assert not (tmp_path / "store").exists()
