"""Continuous thoughts: a language model reads its own hidden states instead of tokens.

After the prompt, pass p feeds one embedding a problem: the begin-of-thought token's at pass 0
(where the model has one) and `feedback(h[p-1])` afterwards, `h[p-1]` being the final hidden
state of the pass before. A pass's hidden states are those of *position* p.

Feedback modes: `codi`, the checkpoint's projection (Shen et al. 2025, arXiv:2502.21074);
`hidden`, the final hidden state itself (Coconut: Hao et al. 2024, arXiv:2412.06769); `soft`, the
embedding expected under the next-token distribution (Soft Thinking: Zhang et al. 2025,
arXiv:2505.15778).
"""

from collections.abc import Callable, Iterable, Sequence

import torch

from sae_jax.extraction.context import Context, LayerHook, pad_left
from sae_jax.extraction.language_model import LanguageModel

FEEDBACK_MODES = ("codi", "hidden", "soft")
NUM_POSITIONS = 6

_TOKENS_A_BLOCK = 1024

ThoughtHook = Callable[[int, int, torch.Tensor], torch.Tensor | None]
"""A function of layer, position and hidden states `[b, d_in]`, which what it returns replaces."""


@torch.inference_mode()
def think(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_positions: int = NUM_POSITIONS,
    feedback: str = "soft",
    layers: Sequence[int] = (),
    hook: ThoughtHook | None = None,
) -> tuple[Context, torch.Tensor]:
    """Reads a batch of prompts and thinks for `num_positions` passes.

    Args:
      model: the language model.
      prompts: token ids of each prompt.
      num_positions: number of passes after the prompt.
      feedback: "codi", "hidden" or "soft".
      layers: 0-based layers whose output the hook gets, at every position.
      hook: function that reads or replaces those outputs.

    Returns:
      The context, in which the model may read on, an answer for example, and the last pass's
      final hidden states `[b, d_in]`.

    Raises:
      ValueError: if the model has no such feedback mode or layer, or a prompt is empty or has
        token ids beyond the embedding.
    """
    check_feedback(model, feedback)
    model.check_layers(layers)
    model.check_prompts(prompts)
    context, hidden = read_prompts(model, prompts)
    positions = range(num_positions)
    return context, think_on(context, hidden, positions, feedback, layers=layers, hook=hook)


@torch.inference_mode()
def read_prompts(
    model: LanguageModel, prompts: Sequence[Sequence[int]]
) -> tuple[Context, torch.Tensor]:
    """Reads a batch of prompts that are checked.

    Returns:
      The context, in which the model may think, and the prompts' last final hidden states
      `[b, d_in]`.
    """
    context = Context(model, len(prompts))
    token_ids, mask = pad_left(prompts, model.device)
    return context, context.read(model.embed(token_ids), mask)[:, -1]


@torch.inference_mode()
def think_on(
    context: Context,
    hidden: torch.Tensor,
    positions: Iterable[int],
    feedback: str,
    *,
    layers: Sequence[int] = (),
    hook: ThoughtHook | None = None,
) -> torch.Tensor:
    """Thinks for some passes in a context that has all before them.

    Args:
      context: what the model has read and thought so far; the passes are added to it.
      hidden: final hidden states of the pass before, or of the prompts, `[b, d_in]`.
      positions: positions of the passes, in order.
      feedback, layers, hook: as `think` takes and checks them.

    Returns:
      The last pass's final hidden states `[b, d_in]`; `hidden` if there is no pass.
    """
    model = context.model
    for position in positions:
        if position == 0 and model.thought_tokens is not None:
            begin = torch.full((len(hidden),), model.thought_tokens.begin, device=model.device)
            embedding = model.embed(begin)
        else:
            embedding = _next_embedding(model, hidden, feedback)
        layer_hook = hook and _at_position(hook, position)
        hidden = context.read(embedding[:, None], None, layers, layer_hook)[:, -1]
    return hidden


def thought_activations(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    positions: Sequence[int] = tuple(range(NUM_POSITIONS)),
    feedback: str = "soft",
) -> torch.Tensor:
    """Returns hidden states of thoughts, float32 `[num_layers, num_positions, b, d_in]`.

    Those of layer l are the output of decoder layer l, `hidden_states[l + 1]` of transformers,
    which for the last layer is taken after the final norm. See `think` for arguments and errors.
    """
    kept = torch.empty(len(layers), len(positions), len(prompts), model.d_in)

    def keep(layer: int, position: int, hidden: torch.Tensor) -> None:
        if position in positions:
            kept[layers.index(layer), positions.index(position)] = hidden

    num_positions = max(positions) + 1
    think(model, prompts, num_positions=num_positions, feedback=feedback, layers=layers, hook=keep)
    return kept


def _at_position(hook: ThoughtHook, position: int) -> LayerHook:
    def layer_hook(layer: int, output: torch.Tensor) -> torch.Tensor | None:
        edited = hook(layer, position, output[:, -1])
        return None if edited is None else edited[:, None].to(output)

    return layer_hook


def _next_embedding(model: LanguageModel, hidden: torch.Tensor, feedback: str) -> torch.Tensor:
    """Turns final hidden states `[b, d_in]` into the embeddings that follow them, `[b, d_in]`."""
    if feedback == "hidden":
        return hidden
    if feedback == "codi" and model.projection is not None:
        return model.projection(hidden)
    return expected_embedding(model.logits(hidden), model.vocabulary_blocks(_TOKENS_A_BLOCK))


def expected_embedding(logits: torch.Tensor, vocabulary: Iterable[torch.Tensor]) -> torch.Tensor:
    """Returns the mean embedding under `softmax(logits)`, exact to some float32 roundings.

    Soft feedback amplifies errors from thought to thought, and on a CPU the plain product makes
    large ones: over 49,152 tokens 4e-6 in a float32 softmax, and 9e-5 where MKL multiplies a
    single row, term after term. So the softmax is in float64 and the product in float32, by blocks.

    Args:
      logits: `[b, vocab_size]`.
      vocabulary: embeddings of all tokens in order, in blocks `[block_size, d_in]`.

    Returns:
      `[b, d_in]`, in the dtype of the vocabulary.
    """
    probabilities = logits.softmax(dim=-1, dtype=torch.float64).float()
    expected = torch.zeros((), device=logits.device)
    start = 0
    for block in vocabulary:
        expected = expected + probabilities[:, start : start + len(block)] @ block.float()
        start += len(block)
    return expected.to(block.dtype)


def check_feedback(model: LanguageModel, feedback: str) -> None:
    """Raises a ValueError if the model cannot think in that mode."""
    if feedback not in FEEDBACK_MODES:
        raise ValueError(f"feedback is {feedback!r}; allowed: {', '.join(FEEDBACK_MODES)}")
    if feedback == "codi" and model.projection is None:
        raise ValueError(
            f"feedback 'codi' needs a CODI checkpoint; {model.name} allows 'hidden' and 'soft'"
        )
