import json

import pytest
import torch
from tiny_codi import RANK, random_state, save
from tiny_llama import D_IN, NUM_LAYERS, VOCAB_SIZE
from transformers import LlamaConfig, LlamaForCausalLM

from sae_jax.extraction.answers import evaluate, last_number
from sae_jax.extraction.codi import load_codi
from sae_jax.extraction.continuous_thoughts import thought_activations
from sae_jax.extraction.models import load_model
from sae_jax.problems import Problem

ALPHA = 32
QUESTIONS = ("What is 2+2?", "Tom has 12 apples and eats 5. How many are left?", "1+1?")


@pytest.fixture(scope="module")
def state(tiny_llama_folder):
    return random_state(tiny_llama_folder)


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    return save(state, tmp_path_factory.mktemp("checkpoint"))


def load(tiny_llama_folder, checkpoint, **options):
    return load_codi(load_model(tiny_llama_folder, device="cpu"), checkpoint, **options)


@pytest.fixture(scope="module")
def model(tiny_llama_folder, checkpoint):
    return load(tiny_llama_folder, checkpoint)


def merged_by_hand(tiny_llama_folder, state):
    config = LlamaConfig.from_pretrained(tiny_llama_folder)
    config.vocab_size = VOCAB_SIZE + 3
    reference = LlamaForCausalLM(config).eval()
    weights = {}
    for name in reference.state_dict():
        prefix = "codi.base_model.model." + name.removesuffix(".weight")
        if f"{prefix}.base_layer.weight" in state:
            lora_a, lora_b = (state[f"{prefix}.lora_{m}.default.weight"] for m in "AB")
            weights[name] = state[f"{prefix}.base_layer.weight"] + ALPHA / RANK * lora_b @ lora_a
        elif name != "lm_head.weight":
            weights[name] = state[f"{prefix}.weight"]
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    reference.load_state_dict(weights)
    return reference


def projected_by_hand(state, hidden):
    inner = torch.nn.functional.gelu(state["prj.1.weight"] @ hidden + state["prj.1.bias"])
    outer = state["prj.3.weight"] @ inner + state["prj.3.bias"]
    centered = outer - outer.mean()
    normalized = centered / torch.sqrt((centered**2).mean() + 1e-5)
    return normalized * state["prj.ln.weight"] + state["prj.ln.bias"]


def thoughts_alone(reference, state, prompt, num_positions=6):
    """The specification as a plain loop: one problem, no cache, everything read again."""
    embedding = reference.get_input_embeddings().weight
    begin = embedding[VOCAB_SIZE + 1]
    sequence = torch.cat([embedding[torch.tensor(prompt)], begin[None]])[None]
    positions = []
    for _ in range(num_positions):
        states = reference(inputs_embeds=sequence, output_hidden_states=True).hidden_states
        positions.append(torch.stack([s[0, -1] for s in states[1:]]))
        thought = projected_by_hand(state, states[-1][0, -1])
        sequence = torch.cat([sequence, thought[None, None]], dim=1)
    return torch.stack(positions, dim=1), sequence


@torch.no_grad()
def test_every_layer_and_position_equals_a_plain_loop(tiny_llama_folder, checkpoint, state):
    # In float64: six passes through random weights amplify rounding a thousandfold.
    model = load(tiny_llama_folder, checkpoint)
    model.causal_lm.double()
    model.projection.double()
    reference = merged_by_hand(tiny_llama_folder, state).double()
    doubled = {name: tensor.double() for name, tensor in state.items()}
    prompts = [model.prompt_ids(question) for question in QUESTIONS]
    activations = thought_activations(model, prompts, layers=range(NUM_LAYERS), feedback="codi")
    for row, prompt in enumerate(prompts):
        expected, _ = thoughts_alone(reference, doubled, prompt)
        torch.testing.assert_close(activations[:, :, row], expected.float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_greedy_answers_equal_a_plain_loop(tiny_llama_folder, state, model):
    reference = merged_by_hand(tiny_llama_folder, state)
    embedding = reference.get_input_embeddings().weight
    expected = []
    for question in QUESTIONS:
        # Six thoughts after the begin-of-thought token, as the official evaluation has.
        _, sequence = thoughts_alone(reference, state, model.prompt_ids(question), 6)
        hidden = None
        tokens = [VOCAB_SIZE + 2]
        for _ in range(8):
            sequence = torch.cat([sequence, embedding[tokens[-1]][None, None]], dim=1)
            hidden = reference.model(inputs_embeds=sequence).last_hidden_state[0, -1]
            tokens.append(int((embedding[:VOCAB_SIZE] @ hidden).argmax()))
            if tokens[-1] == model.tokenizer.eos_token_id:
                break
        expected.append(model.tokenizer.decode(tokens[1:], skip_special_tokens=True))
    problems = [Problem(str(i), question, "4") for i, question in enumerate(QUESTIONS)]
    result = evaluate(
        problems, model, feedback="codi", max_new_tokens=8, batch_size=2, progress=False
    )
    assert list(result.answers) == expected


def test_accuracy_counts_the_last_number(tiny_llama_folder, model):
    answers = evaluate(
        [Problem(str(i), question, "0") for i, question in enumerate(QUESTIONS)],
        model,
        feedback="codi",
        max_new_tokens=8,
        progress=False,
    ).answers
    numbers = [last_number(answer) for answer in answers]
    problems = [
        Problem(str(i), question, str(number) if i == 0 and number == number else "-99999")
        for i, (question, number) in enumerate(zip(QUESTIONS, numbers, strict=True))
    ]
    result = evaluate(problems, model, feedback="codi", max_new_tokens=8, progress=False)
    assert result.num_correct == int(numbers[0] == numbers[0])
    assert result.num_problems == 3


@pytest.mark.parametrize(
    ("text", "number"),
    [("The answer is: 1,234", 1234.0), ("3 and -4.5", -4.5), ("18.", 18.0)],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_an_answer_without_a_number_equals_nothing():
    assert last_number("none") != last_number("none")


def test_evaluation_needs_numeric_answers(model):
    with pytest.raises(ValueError, match="problem p has the answer 'blue'"):
        evaluate([Problem("p", "What?", "blue")], model, feedback="codi")


def test_the_prompt_may_end_with_an_end_of_sequence_token(tiny_llama_folder, checkpoint, model):
    official = load(tiny_llama_folder, checkpoint, eos_before_thoughts=True)
    plain = model.prompt_ids("1+1?")
    assert official.prompt_ids("1+1?") == [*plain, model.tokenizer.eos_token_id]
    assert plain[0] == model.tokenizer.bos_token_id


def test_lora_alpha_scales_the_products(tiny_llama_folder, checkpoint, state):
    model = load(tiny_llama_folder, checkpoint, lora_alpha=0)
    weight = model.causal_lm.get_submodule("model.layers.1.mlp.up_proj").weight
    expected = state["codi.base_model.model.model.layers.1.mlp.up_proj.base_layer.weight"]
    torch.testing.assert_close(weight, expected)


def test_pytorch_model_bin_gives_the_same_weights(tiny_llama_folder, state, model, tmp_path):
    torch.save(state, tmp_path / "pytorch_model.bin")
    other = load(tiny_llama_folder, str(tmp_path)).causal_lm.state_dict()
    for name, tensor in model.causal_lm.state_dict().items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0)


def test_a_projection_without_layer_norm_is_read_as_such(tiny_llama_folder, state, tmp_path):
    without = {name: t for name, t in state.items() if not name.startswith("prj.ln")}
    model = load(tiny_llama_folder, save(without, tmp_path))
    hidden = torch.ones(D_IN)
    inner = torch.nn.functional.gelu(state["prj.1.weight"] @ hidden + state["prj.1.bias"])
    expected = state["prj.3.weight"] @ inner + state["prj.3.bias"]
    torch.testing.assert_close(model.projection(hidden), expected)


def test_the_weights_fingerprint_is_the_checkpoints(tiny_llama_folder, state, model, tmp_path):
    fingerprint = model.settings()["weights_sha256"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert load(tiny_llama_folder, str(tmp_path)).settings()["weights_sha256"] == fingerprint
    name = "codi.base_model.model.model.layers.2.mlp.up_proj.lora_B.default.weight"
    (tmp_path / "other").mkdir()
    other = {**state, name: state[name] * 1.001}
    changed = load(tiny_llama_folder, save(other, tmp_path / "other"))
    assert changed.settings()["weights_sha256"] != fingerprint
    assert (
        changed.settings()["rendered_prompt_sha256"] == model.settings()["rendered_prompt_sha256"]
    )


class TestAnUntrainedBase:
    """The baseline of the same shapes in which nothing is learned."""

    def load(self, folder, checkpoint, seed):
        base = load_model(folder, device="cpu", untrained_seed=seed)
        before = {name: weight.clone() for name, weight in base.causal_lm.state_dict().items()}
        return before, load_codi(base, checkpoint)

    def test_keeps_its_weights_and_takes_none_of_the_checkpoints(
        self, tiny_llama_folder, checkpoint, state
    ):
        before, model = self.load(tiny_llama_folder, checkpoint, 1)
        embedding = "model.embed_tokens.weight"
        for name, weight in model.causal_lm.state_dict().items():
            if name not in (embedding, "lm_head.weight"):
                torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
        after = model.causal_lm.state_dict()[embedding]
        assert after.shape == (VOCAB_SIZE + 3, D_IN)
        torch.testing.assert_close(after[:VOCAB_SIZE], before[embedding], rtol=0, atol=0)
        # New rows are as large as others, and not drawn from numbers that the base has used.
        deviation = before[embedding].std()
        assert 0.5 * deviation < after[VOCAB_SIZE:].std() < 2 * deviation
        rows = torch.cat([w for w in before.values() if w.ndim == 2 and w.shape[1] == D_IN])
        cosines = torch.nn.functional.cosine_similarity(after[VOCAB_SIZE:, None], rows[None], -1)
        assert cosines.max() < 0.99
        for name, weight in model.projection.named_parameters():
            there = state[f"prj.{name}"]
            assert weight.shape == there.shape
            assert not torch.equal(weight, there)
        assert model.thought_tokens.begin == VOCAB_SIZE + 1
        assert (
            model.name == f"{tiny_llama_folder}, untrained with seed 1, shaped as CODI {checkpoint}"
        )

    def test_a_seed_gives_one_model(self, tiny_llama_folder, checkpoint, model):
        torch.manual_seed(5)
        drawn = torch.rand(3)
        torch.manual_seed(5)
        first, again, other = (
            self.load(tiny_llama_folder, checkpoint, seed)[1] for seed in (1, 1, 2)
        )
        torch.testing.assert_close(torch.rand(3), drawn, rtol=0, atol=0)
        hashes = [m.settings()["weights_sha256"] for m in (first, again, other, model)]
        assert hashes[0] == hashes[1]
        assert len(set(hashes)) == 3
        thoughts = [
            thought_activations(
                m, [m.prompt_ids("1+1?")], layers=range(NUM_LAYERS), feedback="codi"
            )
            for m in (first, again, other, model)
        ]
        torch.testing.assert_close(thoughts[0], thoughts[1], rtol=0, atol=0)
        assert not any(torch.allclose(thoughts[0], t, atol=1e-2) for t in thoughts[2:])


def test_rotary_frequencies_stay_in_float32_under_bfloat16(tiny_llama_folder, checkpoint, model):
    half = load_codi(load_model(tiny_llama_folder, device="cpu", dtype="bfloat16"), checkpoint)
    assert half.causal_lm.dtype == half.projection[1].weight.dtype == torch.bfloat16
    found = half.causal_lm.get_buffer("model.rotary_emb.inv_freq")
    expected = 10_000.0 ** -torch.tensor([0.0, 0.5])  # heads of width 4
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        "codi.base_model.model.model.layers.1.mlp.gate_proj.lora_B.default.weight",
        "codi.base_model.model.model.layers.2.self_attn.q_proj.lora_A.default.weight",
        "codi.base_model.model.model.layers.0.self_attn.o_proj.base_layer.weight",
        "codi.base_model.model.model.embed_tokens.weight",
        "prj.1.weight",
        "prj.1.bias",
        "prj.3.weight",
        "prj.ln.bias",
    ],
)
def test_a_missing_weight_is_refused_by_name(tiny_llama_folder, state, tmp_path, name):
    rest = {other: tensor for other, tensor in state.items() if other != name}
    with pytest.raises(ValueError, match=f"(lacks|Missing key).*{name}"):
        load(tiny_llama_folder, save(rest, tmp_path))


def test_an_unexpected_weight_is_refused_by_name(tiny_llama_folder, state, tmp_path):
    more = {**state, "prj.5.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r'Unexpected key.*"prj\.5\.weight"'):
        load(tiny_llama_folder, save(more, tmp_path))


def test_a_weight_of_another_shape_is_refused(tiny_llama_folder, state, tmp_path):
    name = "codi.base_model.model.model.embed_tokens.weight"
    other = {**state, name: state[name][:-3]}
    with pytest.raises(ValueError, match=r"mismatch for .*\[100, 16\].*current.*\[103, 16\]"):
        load(tiny_llama_folder, save(other, tmp_path))


def test_a_folder_without_weights_is_refused(tiny_llama_folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"neither of model\.safetensors, pytorch_model\.bin"):
        load(tiny_llama_folder, str(tmp_path))


def test_a_checkpoint_that_is_not_there_is_refused(tiny_llama_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no CODI checkpoint at"):
        load(tiny_llama_folder, str(tmp_path / "nowhere"))


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_with_code_in_it_is_refused(tiny_llama_folder, tmp_path, capsys):
    torch.save({"prj.1.weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="tensors and plain values alone"):
        load(tiny_llama_folder, str(tmp_path))
    assert "must never run" not in capsys.readouterr().out
