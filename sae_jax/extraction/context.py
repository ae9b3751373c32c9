"""Reading on with a language model, batch by batch and pass by pass, under one cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache

from sae_jax.extraction.language_model import LanguageModel
from sae_jax.extraction.linear import OneDNNLinear

LayerHook = Callable[[int, torch.Tensor], torch.Tensor | None]
"""Called with a layer and its output `[b, t, d_in]`; what it returns replaces the output."""


class Context:
    """What a model has read so far, for a batch of sequences, in its key-value cache."""

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
        """Reads on, and returns the final hidden states (after the last norm).

        Args:
          embeddings: `[b, t, d_in]`.
          mask: `[b, t]`, 0 where a sequence is padded; all ones if None.
          layers: 0-based layers whose output the hook gets.
          hook: reads or replaces those outputs.

        Returns:
          `[b, t, d_in]`.
        """
        if mask is None:
            mask = self.mask.new_ones(embeddings.shape[:2])
        self.mask = torch.cat([self.mask, mask], dim=1)
        # Padding neither takes a position nor is attended to, so a sequence sees what it
        # would see alone.
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        with _hooked(self.model, layers, hook), OneDNNLinear():
            return self.model.decoder(
                inputs_embeds=embeddings,
                attention_mask=self.mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state


def pad_left(
    sequences: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both int64 `[b, t]`, with every sequence ending in the last column."""
    longest = max(map(len, sequences))
    # Padding ids are never attended to, so any id of the vocabulary does.
    token_ids = torch.zeros((len(sequences), longest), dtype=torch.long)
    mask = torch.zeros_like(token_ids)
    for row, ids in enumerate(sequences):
        token_ids[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = 1
    return token_ids.to(device), mask.to(device)


@contextmanager
def _hooked(model: LanguageModel, layers: Sequence[int], hook: LayerHook | None) -> Iterator[None]:
    handles = []
    try:
        if hook is not None:
            for layer in layers:
                module = model.layer_output(layer)
                handles.append(module.register_forward_hook(_forward_hook(layer, hook)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward_hook(layer: int, hook: LayerHook) -> Callable:
    return lambda module, inputs, output: hook(layer, output)
