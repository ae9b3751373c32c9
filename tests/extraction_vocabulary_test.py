"""The unembedding reads what the model itself reads, and tokens are the questions' own."""

import pytest

torch = pytest.importorskip("torch")

from sae_jax.extraction.models import load_model  # noqa: E402
from sae_jax.extraction.vocabulary import tokens_and_unembedding, tokens_of_problems  # noqa: E402
from sae_jax.problems import Problem  # noqa: E402


@pytest.fixture(scope="module")
def model(tiny_llama_folder):
    model = load_model(tiny_llama_folder)
    with torch.no_grad():
        # Weights other than 1, which would hide that they are left out.
        model.decoder.norm.weight.uniform_(0.5, 2, generator=torch.manual_seed(0))
    return model


def test_products_with_a_state_of_size_1_are_the_models_logits(model):
    tokens, rows = tokens_and_unembedding(model)
    assert len(tokens) == len(rows) == model.vocab_size
    hidden = torch.randn(4, model.d_in, generator=torch.manual_seed(1))
    with torch.no_grad():
        logits = model.causal_lm.lm_head(model.decoder.norm(hidden))
    of_size_1 = hidden / hidden.pow(2).mean(dim=-1, keepdim=True).sqrt()
    assert torch.allclose(logits, of_size_1 @ torch.tensor(rows).T, atol=1e-4)


def test_tokens_of_a_question_are_its_characters_after_the_first(model):
    problems = [Problem("a", "1+2?"), Problem("b", "no"), Problem("a", "1+2?")]
    found = tokens_of_problems(model, problems)
    assert found == {"a": ["<s>", "1", "+", "2", "?"], "b": ["<s>", "n", "o"]}
