"""Hidden states at the tokens of a text, for models that think in tokens."""

from collections.abc import Sequence

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
    """Hidden states at some tokens, float32 `[num_layers, num_positions, b, d_in]`.

    Args:
      model: the model.
      prompts: token ids of each prompt.
      layers: 0-based decoder layers, as `hidden_states[layer + 1]` of transformers.
      positions: token indices; negative ones count from a prompt's end.

    Raises:
      IndexError: if a prompt is too short.
    """
    model.check_prompts(prompts)
    kept = torch.empty(len(layers), len(positions), len(prompts), model.d_in)
    columns = torch.tensor([_columns(prompts, position) for position in positions])
    rows = torch.arange(len(prompts))

    def keep(layer: int, output: torch.Tensor) -> None:
        kept[layers.index(layer)] = output[rows, columns]

    _read(model, prompts, layers, keep)
    return kept


@torch.inference_mode()
def all_token_activations(
    model: LanguageModel, prompts: Sequence[Sequence[int]], *, layers: Sequence[int]
) -> torch.Tensor:
    """Hidden states at every token, one prompt after the other.

    Returns:
      float32 `[num_layers, num_tokens, d_in]`, without padding.
    """
    model.check_prompts(prompts)
    kept = torch.empty(len(layers), sum(map(len, prompts)), model.d_in)
    mask = pad_left(prompts, model.device)[1].bool()

    def keep(layer: int, output: torch.Tensor) -> None:
        kept[layers.index(layer)] = output[mask]

    _read(model, prompts, layers, keep)
    return kept


def _read(model: LanguageModel, prompts: Sequence[Sequence[int]], layers, keep) -> None:
    model.check_layers(layers)
    token_ids, mask = pad_left(prompts, model.device)
    Context(model, len(prompts)).read(model.embed(token_ids), mask, layers, keep)


def _columns(prompts: Sequence[Sequence[int]], position: int) -> list[int]:
    longest = max(map(len, prompts))
    for ids in prompts:
        if not -len(ids) <= position < len(ids):
            raise IndexError(f"a prompt of {len(ids)} tokens has no token {position}")
    return [
        longest + position if position < 0 else longest - len(ids) + position for ids in prompts
    ]
