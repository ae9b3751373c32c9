"""Soft thoughts of families whose embeddings or logits are scaled, against the models' own."""

import pytest
import torch
from tiny_llama import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from sae_jax.extraction.continuous_thoughts import thought_activations
from sae_jax.extraction.models import load_model
from sae_jax.extraction.token_states import all_token_activations

SIZES = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "mixtral": EXPERTS,
    "gemma": {},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 4, "final_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 4},
    "granite": {
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.3,
    },
    "granitemoe": {"embedding_multiplier": 6.0, "logits_scaling": 4.0, **EXPERTS},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 16},
    "minicpm3": {
        "scale_emb": 12,
        "dim_model_base": 4,
        "scale_depth": 1.4,
        "head_dim": None,
        "num_key_value_heads": 4,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
    },
    "olmo2": {},
    "phi3": {"partial_rotary_factor": 1.0},
    "stablelm": {},
}
QUESTIONS = ("1+1?", "Tom has 12 apples and eats 5. How many are left?", "What is 2+2?")


def save_tiny(family, folder, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **options})
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # else all ones, or all zeros in Gemma
                torch.nn.init.normal_(parameter, mean=1 - ("gemma" in family), std=0.2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def soft_thoughts_alone(reference, prompt, num_positions=3):
    """A plain loop over the model's own logits and embedding: no cache, nothing of ours."""
    embed = reference.get_input_embeddings()
    vocabulary = embed(torch.arange(SIZES["vocab_size"]))
    sequence = embed(torch.tensor([prompt]))
    positions = []
    for _ in range(num_positions + 1):
        output = reference(inputs_embeds=sequence, output_hidden_states=True, use_cache=False)
        positions.append(torch.stack([state[0, -1] for state in output.hidden_states[1:]]))
        thought = output.logits[0, -1].softmax(dim=-1) @ vocabulary
        sequence = torch.cat([sequence, thought[None, None]], dim=1)
    return torch.stack(positions[1:], dim=1)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost a tiny model more than they save, most of all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_soft_thoughts_are_those_of_the_models_own_logits_and_embedding(tmp_path, family):
    folder = save_tiny(family, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = load_model(folder, device="cpu")
    prompts = [model.prompt_ids(question) for question in QUESTIONS]
    batch = thought_activations(model, prompts, layers=range(3), positions=range(3))
    for row, prompt in enumerate(prompts):
        expected = soft_thoughts_alone(reference, prompt)
        error = (batch[:, :, row] - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < 2e-5, error
    states = all_token_activations(model, prompts, layers=range(3))
    start = 0
    for prompt in prompts:
        own = reference(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        found = states[:, start : start + len(prompt)]
        expected = torch.stack([state[0] for state in own[1:]])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        start += len(prompt)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_logits_have_the_shape_of_the_hidden_states(tmp_path, family):
    model = load_model(save_tiny(family, tmp_path), device="cpu")
    hidden = torch.randn(2, 3, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0))
    logits = model.logits(hidden)
    assert logits.shape == (2, 3, SIZES["vocab_size"])
    torch.testing.assert_close(model.logits(hidden[1, 2]), logits[1, 2])
    weight = model.causal_lm.lm_head.weight
    scale = {"llama": 1, "gemma2": 1, "granite": 1 / 8}[family]
    expected = hidden @ weight.T * scale
    if family == "gemma2":
        expected = 2 * torch.tanh(expected / 2)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("gpt2", {}, "GPT2LMHeadModel, which cannot be read here: .* decoder with `layers`"),
        # Its layers need the token ids, or what earlier layers made of them.
        ("gemma4_text", {}, "Gemma4ForCausalLM, which cannot be read here: it does not read"),
    ],
)
def test_a_family_that_computes_otherwise_is_refused(tmp_path, family, options, reason):
    folder = save_tiny(family, tmp_path, **options)
    with pytest.raises(ValueError, match=reason):
        load_model(folder, device="cpu")


def test_a_layer_whose_output_is_no_hidden_state_is_refused(tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaModel

    forward = LlamaModel.forward

    def shifted(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if kwargs.get("output_hidden_states"):
            states = list(output.hidden_states)
            output.hidden_states = (*states[:2], states[2] + states[1], states[3])
        return output

    folder = save_tiny("llama", tmp_path)
    monkeypatch.setattr(LlamaModel, "forward", shifted)
    with pytest.raises(ValueError, match="the output of its layer 1, from embeddings, is not"):
        load_model(folder, device="cpu")


def test_a_family_whose_embeddings_are_not_what_tokens_give_is_refused(tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaModel

    forward = LlamaModel.forward

    def scaled(self, input_ids=None, inputs_embeds=None, **kwargs):
        if input_ids is not None:  # scaled for tokens alone
            inputs_embeds = 3 * self.embed_tokens(input_ids)
        return forward(self, inputs_embeds=inputs_embeds, **kwargs)

    folder = save_tiny("llama", tmp_path)
    monkeypatch.setattr(LlamaModel, "forward", scaled)
    with pytest.raises(ValueError, match="the output of its layer 0, from embeddings, is not"):
        load_model(folder, device="cpu")
