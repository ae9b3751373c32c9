"""Wraps a causal language model: its layers, embedding and logits, and how it is asked."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MoeModelOutputWithPast

from sae_jax.extraction.fingerprints import json_sha256, tensors_sha256
from sae_jax.extraction.linear import OneDNNLinear
from sae_jax.extraction.prompts import chat_text, token_ids
from sae_jax.problems import Problem

ModuleType = TypeVar("ModuleType", bound=torch.nn.Module)

_logger = logging.getLogger(__name__)

_QUESTION = "{question}"
_SAMPLE_QUESTION = "How many are 2 and 3?"


@dataclass(frozen=True)
class ThoughtTokens:
    """The token ids around a CODI model's thoughts.

    Attributes:
      begin: begin-of-thought token, which the model reads at position 0.
      end: end-of-thought token, which it reads before the answer.
      eos: end-of-sequence token, which it reads before `begin` and after `end`; None for neither.
    """

    begin: int
    end: int
    eos: int | None = None


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model ready to think about questions.

    Attributes:
      name: source that the model was loaded from; it goes into a store's manifest.
      causal_lm: the transformers model, in evaluation mode.
      tokenizer: tokenizer of the model.
      prompt_template: text with "{question}" in it, or None for the model's chat template, or
        for the question alone where the model has none.
      thought_tokens: tokens around the thoughts of a CODI checkpoint.
      projection: network of a CODI checkpoint that turns a final hidden state `[..., d_in]` into
        the next embedding `[..., d_in]`.
      weights_sha256: checksum of a CODI checkpoint's tensors, since merging them rounds
        differently from machine to machine; None for that of the weights of `causal_lm`.
      untrained_seed: PRNG seed of weights that are random; None for trained ones.

    Raises:
      ValueError: if the prompt template has no place for the question.
    """

    name: str
    causal_lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt_template: str | None = None
    thought_tokens: ThoughtTokens | None = None
    projection: torch.nn.Module | None = None
    weights_sha256: str | None = None
    untrained_seed: int | None = None

    def __post_init__(self):
        if self.prompt_template is not None and _QUESTION not in self.prompt_template:
            raise ValueError(f"prompt template {self.prompt_template!r} has no {_QUESTION}")

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.causal_lm.config.num_hidden_layers

    @property
    def d_in(self) -> int:
        """Width of the residual stream."""
        return self.causal_lm.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""
        return self.causal_lm.device

    @property
    def decoder(self) -> PreTrainedModel:
        """The model without its vocabulary projection."""
        return self.causal_lm.get_decoder()

    def layer_output(self, layer: int) -> torch.nn.Module:
        """Returns the module whose output is `hidden_states[layer + 1]`; the last is the norm."""
        last = layer == self.num_layers - 1
        return self.decoder.get_submodule("norm" if last else f"layers.{layer}")

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the embedding has."""
        return self._embedding.get_parameter("weight").shape[0]

    def vocabulary_blocks(self, block_size: int) -> Iterator[torch.Tensor]:
        """Yields the embedding of every token, `[block_size, d_in]` at a time."""
        if type(self._embedding) is torch.nn.Embedding:
            yield from self._embedding.weight.split(block_size)
        else:  # A subclass scales what it looks up.
            token_ids = torch.arange(self.vocab_size, device=self.device)
            yield from (self.embed(block) for block in token_ids.split(block_size))

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeds token ids `[...]` as `[..., d_in]`, as the model's own embedding does."""
        return self._embedding(token_ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Computes logits `[..., vocab_size]`, float32, of final hidden states `[..., d_in]`.

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
        """Returns what decides the activations, for a store's manifest.

        Weights, tokenizer and prompt are there by their sha256, so that no store is continued
        with others: `weights_sha256` of all parameters and buffers, or of the tensors of a CODI
        checkpoint; `tokenizer_sha256` of the vocabulary; `rendered_prompt_sha256` of the prompt
        for a sample question. Reading the weights takes a second for every GB.
        """
        weights = [*self.causal_lm.named_parameters(), *self.causal_lm.named_buffers()]
        return {
            "compute_dtype": str(self.causal_lm.dtype).removeprefix("torch."),
            "prompt_template": self.prompt_template,
            "thought_tokens": self.thought_tokens and dataclasses.asdict(self.thought_tokens),
            "weights_sha256": self.weights_sha256 or tensors_sha256(weights),
            "tokenizer_sha256": json_sha256(sorted(self.tokenizer.get_vocab().items())),
            "rendered_prompt_sha256": json_sha256(self.prompt_text(_SAMPLE_QUESTION)),
        }

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises a ValueError if a layer is not one of the model's."""
        if unknown := [layer for layer in layers if not 0 <= layer < self.num_layers]:
            raise ValueError(
                f"layers {unknown} are not in {self.name}, which has 0 to {self.num_layers - 1}"
            )

    def prompt_text(self, question: str) -> str:
        """Returns the prompt for a question, without the special tokens that a tokenizer adds."""
        if self.prompt_template is not None:
            return self.prompt_template.replace(_QUESTION, question)
        return chat_text(self.tokenizer, question) if self._is_chat else question

    def prompt_ids(self, question: str) -> list[int]:
        """Returns token ids of the prompt for a question, with the tokenizer's special tokens.

        A chat template writes special tokens itself, and gets a fixed date where it prints one.
        A prompt begins with one begin-of-sequence token, even if its text and the tokenizer
        give it two.
        """
        text = self.prompt_text(question)
        ids = token_ids(self.tokenizer, text, add_special_tokens=not self._is_chat)
        tokens = self.thought_tokens
        if self.prompt_template is None and tokens is not None and tokens.eos is not None:
            ids = [*ids, tokens.eos]
        return ids

    def prompts(
        self, problems: Sequence[Problem], *, num_thoughts: int = 0, templates: bool = True
    ) -> list[list[int]]:
        """Returns token ids of the prompt for every problem, checked before hours of work.

        Prompts that are longer than a model's rotary positions reach only bring a warning, since
        such a model reads on beyond what it was trained on.

        Args:
          problems: the problems that the model is asked.
          num_thoughts: number of positions that are needed after a prompt.
          templates: whether a question is put into the prompt template.

        Raises:
          ValueError: if a prompt has no tokens, one that the embedding does not have, or more
            than the model has absolute positions for; the error names the problem.
        """
        read = self.prompt_ids if templates else partial(token_ids, self.tokenizer)
        prompts = [read(problem.question) for problem in problems]
        names = [f"the prompt of problem {problem.id}" for problem in problems]
        self.check_prompts(prompts, names)
        limit = getattr(self.causal_lm.config, "max_position_embeddings", None)
        too_long = [
            f"{name} has {len(ids)} tokens"
            for name, ids in zip(names, prompts, strict=True)
            if limit is not None and len(ids) + num_thoughts > limit
        ]
        if too_long:
            thoughts = f" and {num_thoughts} thoughts follow" if num_thoughts else ""
            found = f"{too_long[0]}{thoughts}; {self.name} has {limit} positions"
            others = f" ({len(too_long)} of {len(prompts)} prompts are too long)"
            if not self._has_rotary_positions:
                raise ValueError(found + others)
            _logger.warning("%s%s: beyond them it was not trained", found, others)
        return prompts

    def check_prompts(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str] | None = None
    ) -> None:
        """Checks that a model can read prompts, which errors call by `names`.

        Raises:
          ValueError: if a prompt has no tokens, or one that the embedding does not have.
        """
        for row, ids in enumerate(prompts):
            name = f"prompt {row}" if names is None else names[row]
            if not len(ids):
                raise ValueError(f"{name} has no tokens; a model needs at least one")
            if unknown := [token_id for token_id in ids if not 0 <= token_id < self.vocab_size]:
                raise ValueError(
                    f"{name} has the token id {unknown[0]}, but the embedding of {self.name} has "
                    f"{self.vocab_size} tokens, 0 to {self.vocab_size - 1}: is the tokenizer "
                    "another model's?"
                )

    @property
    def _has_rotary_positions(self) -> bool:
        return any("rotary" in name for name, _ in self.decoder.named_modules())

    @property
    def _is_chat(self) -> bool:
        return (
            self.prompt_template is None
            and self.thought_tokens is None
            and bool(self.tokenizer.chat_template)
        )


def cast_parameters(module: ModuleType, dtype: torch.dtype) -> ModuleType:
    """Casts a module's parameters, leaves its buffers, and puts it into evaluation mode.

    Rotary frequencies are buffers in float32 whatever the parameters are; in bfloat16 they would
    place a token some positions off.
    """
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module
