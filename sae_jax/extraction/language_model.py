"""A causal language model: its layers, embedding and logits, and how it is asked a question."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MoeModelOutputWithPast

from sae_jax.extraction.linear import OneDNNLinear

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
    def vocab_size(self) -> int:
        """Tokens that the embedding has."""
        return self._embedding.get_parameter("weight").shape[0]

    @property
    def vocabulary(self) -> torch.Tensor:
        """The embedding of every token, `[vocab_size, d_in]`."""
        return torch.cat(list(self.vocabulary_blocks(self.vocab_size)))

    def vocabulary_blocks(self, block_size: int) -> Iterator[torch.Tensor]:
        """The embedding of every token, `[block_size, d_in]` at a time."""
        if type(self._embedding) is torch.nn.Embedding:
            yield from self._embedding.weight.split(block_size)
        else:  # a subclass scales what it looks up
            token_ids = torch.arange(self.vocab_size, device=self.device)
            yield from (self.embed(block) for block in token_ids.split(block_size))

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeds token ids `[..., ]` as `[..., d_in]`, as the model's own embedding does."""
        return self._embedding(token_ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits of final hidden states, float32 `[..., vocab_size]`.

        The model's own forward pass computes them, with the decoder left out, since some
        families scale logits (Granite, Cohere) or cap them (Gemma 2) there.
        """
        flat = hidden.reshape(-1, 1, hidden.shape[-1])

        def decoded(*args: Any, **kwargs: Any) -> MoeModelOutputWithPast:
            return MoeModelOutputWithPast(last_hidden_state=flat)

        with patch.object(self.decoder, "forward", decoded), OneDNNLinear():
            logits = self.causal_lm(inputs_embeds=flat, use_cache=False).logits
        return logits.float().reshape(*hidden.shape[:-1], -1)

    @property
    def _embedding(self) -> torch.nn.Module:
        return self.causal_lm.get_input_embeddings()

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
