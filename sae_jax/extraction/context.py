"""Reads on with a language model, batch by batch and pass by pass, under one cache."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from sae_jax.extraction.language_model import LanguageModel
from sae_jax.extraction.linear import OneDNNLinear

LayerHook = Callable[[int, torch.Tensor], torch.Tensor | None]
"""A function of a layer and its output `[b, t, d_in]`; what it returns replaces the output."""


class Context:
    """Keeps what a model has read so far of a batch of sequences, in its key-value cache.

    Attributes:
      model: the language model.
      mask: int64 `[b, t]`, 0 where a sequence is padded, 1 elsewhere.
    """

    def __init__(self, model: LanguageModel, batch_size: int):
        self.model = model
        self.mask = torch.zeros((batch_size, 0), dtype=torch.long, device=model.device)
        self._cache = DynamicCache(config=model.causal_lm.config)

    def read(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor | None = None,
        layers: Sequence[int] = (),
        hook: LayerHook | None = None,
    ) -> torch.Tensor:
        """Reads on, and returns the final hidden states, those after the last norm.

        Args:
          embeddings: `[b, t, d_in]`.
          mask: int64 `[b, t]`, 0 where a sequence is padded; all ones if None.
          layers: 0-based layers whose output the hook gets.
          hook: function that reads or replaces those outputs.

        Returns:
          Final hidden states `[b, t, d_in]`.
        """
        if mask is None:
            mask = self.mask.new_ones(embeddings.shape[:2])
        self.mask = torch.cat([self.mask, mask], dim=1)
        # Padding neither takes a position nor is attended to, so a sequence sees what it
        # would see alone.
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        with OneDNNLinear(), ExitStack() as hooks:
            if hook is not None:
                for layer in layers:
                    module = self.model.layer_output(layer)
                    hooks.enter_context(module.register_forward_hook(_forward_hook(layer, hook)))
            return self.model.decoder(
                inputs_embeds=embeddings,
                attention_mask=self.mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state

    def select(self, rows: torch.Tensor) -> "Context":
        """Returns a context of some of the sequences, int64 `[r]`, which is read on by itself.

        A sequence may be there several times. This context stays as it is.
        """
        selected = copy.copy(self)
        selected.mask = self.mask[rows]
        # Layers of the cache replace their tensors and change none, so copies may share them.
        selected._cache = copy.copy(self._cache)
        selected._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        selected._cache.reorder_cache(cast(torch.LongTensor, rows))
        return selected


def pad_left(
    sequences: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token ids and mask, int64 `[b, t]`; every sequence ends in the last column."""
    rows = [torch.tensor(ids) for ids in sequences]
    # Padding ids are never attended to, so any id of the vocabulary does.
    token_ids, mask = (
        pad_sequence(padded, batch_first=True, padding_side="left").to(device)
        for padded in (rows, [torch.ones_like(row) for row in rows])
    )
    return token_ids, mask


def _forward_hook(layer: int, hook: LayerHook) -> Callable:
    return lambda module, inputs, output: hook(layer, output)
