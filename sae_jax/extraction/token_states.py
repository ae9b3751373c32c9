"""Reads hidden states at the tokens of a text, for models that think in tokens."""

from collections.abc import Sequence
from typing import Any

import torch

from sae_jax.extraction.context import Context, pad_left
from sae_jax.extraction.language_model import LanguageModel


@torch.inference_mode()
def token_activations(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    positions: Sequence[int],
) -> torch.Tensor:
    """Reads hidden states at some tokens, float32 `[num_layers, num_positions, b, d_in]`.

    Args:
      model: the language model.
      prompts: token ids of each prompt.
      layers: 0-based decoder layers, as `hidden_states[layer + 1]` of transformers.
      positions: token indices; negative ones count from a prompt's end.

    Raises:
      IndexError: if a prompt is too short.
    """
    model.check_prompts(prompts)
    for ids in prompts:
        for position in positions:
            if not -len(ids) <= position < len(ids):
                raise IndexError(f"a prompt of {len(ids)} tokens has no token {position}")
    # Padded prompts are aligned at their ends, from where negative columns count.
    columns = [[p if p < 0 else p - len(ids) for ids in prompts] for p in positions]
    kept = torch.empty(len(layers), len(positions), len(prompts), model.d_in)
    _read(model, prompts, layers, (torch.arange(len(prompts)), torch.tensor(columns)), kept)
    return kept


@torch.inference_mode()
def all_token_activations(
    model: LanguageModel, prompts: Sequence[Sequence[int]], *, layers: Sequence[int]
) -> torch.Tensor:
    """Reads hidden states at every token, one prompt after the other.

    Args:
      model: the language model.
      prompts: token ids of each prompt.
      layers: 0-based decoder layers, as `hidden_states[layer + 1]` of transformers.

    Returns:
      float32 `[num_layers, num_tokens, d_in]`, without padding.
    """
    model.check_prompts(prompts)
    is_token = pad_left(prompts, model.device)[1].bool()
    kept = torch.empty(len(layers), sum(map(len, prompts)), model.d_in)
    _read(model, prompts, layers, is_token, kept)
    return kept


def _read(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int],
    index: Any,
    kept: torch.Tensor,
) -> None:
    """Reads prompts, and keeps what an index takes from each layer's output `[b, t, d_in]`."""
    model.check_layers(layers)
    token_ids, mask = pad_left(prompts, model.device)

    def keep(layer: int, output: torch.Tensor) -> None:
        kept[layers.index(layer)] = output[index]

    Context(model, len(prompts)).read(model.embed(token_ids), mask, layers, keep)
