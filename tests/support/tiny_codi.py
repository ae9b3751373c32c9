"""A CODI checkpoint of a few thousand weights, in the published layout."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_llama import VOCAB_SIZE
from transformers import LlamaForCausalLM

RANK, WIDTH = 4, 10


def random_state(llama_folder):
    """A state dict built from its description, with random weights that fit a tiny LLaMA."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.15

    base = LlamaForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    d_in = base.config.hidden_size
    state = {}
    for name, tensor in base.state_dict().items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            prefix = f"codi.base_model.model.{module}"
            state[f"{prefix}.base_layer.weight"] = random(*tensor.shape)
            state[f"{prefix}.lora_A.default.weight"] = random(RANK, tensor.shape[1])
            state[f"{prefix}.lora_B.default.weight"] = random(tensor.shape[0], RANK)
        elif module.endswith("embed_tokens"):
            state[f"codi.base_model.model.{name}"] = random(VOCAB_SIZE + 3, d_in)
        elif module != "lm_head":
            state[f"codi.base_model.model.{name}"] = 1 + random(*tensor.shape)
    state["prj.1.weight"], state["prj.1.bias"] = random(WIDTH, d_in), random(WIDTH)
    state["prj.3.weight"], state["prj.3.bias"] = random(d_in, WIDTH), random(d_in)
    state["prj.ln.weight"], state["prj.ln.bias"] = random(d_in), random(d_in)
    return state


def save(state, folder):
    """Saves a state dict as a checkpoint, and returns its folder."""
    path = Path(folder) / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return str(folder)
