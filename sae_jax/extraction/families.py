"""Checks on random tokens that a model's family computes as this package reads models."""

import torch

from sae_jax.extraction.context import Context, pad_left
from sae_jax.extraction.language_model import LanguageModel

# The lengths of a batch's sequences, whose last tokens are read on in the cache of the others.
_LENGTHS = (8, 5)
_NUM_READ_ON = 2
# The two ways may multiply matrices by two libraries, whose results differ by so much.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@torch.inference_mode()
def check_family(model: LanguageModel) -> None:
    """Computes random tokens in two ways: as the model does, and as this package does.

    The model reads one sequence of token ids. The package reads a padded batch of embeddings in
    two passes under a cache, takes hidden states by hooks, and logits of the last one.

    Raises:
      ValueError: if the two differ, since then the family is not one that can be read.
    """
    family = f"{model.name} is a {type(model.causal_lm).__name__}, which cannot be read here"
    try:
        _ = model.decoder.layers, model.decoder.norm, model.num_layers
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"{family}: a model of the LLaMA family has a decoder with `layers` and a final "
            "`norm`, and reads text alone"
        ) from error
    generator = torch.Generator().manual_seed(0)
    sequences = [
        torch.randint(model.vocab_size, (length,), generator=generator) for length in _LENGTHS
    ]
    own = [_own_states(model, sequence) for sequence in sequences]
    try:
        states, logits = _read_states(model, [sequence.tolist() for sequence in sequences])
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{family}: it does not read embeddings on in a cache ({error})"
        ) from error
    tolerance = _TOLERANCES[model.causal_lm.dtype]
    for row, (own_states, own_logits) in enumerate(own):
        for layer, expected in enumerate(own_states):
            if not _is_close(states[layer][row], expected, tolerance):
                raise ValueError(
                    f"{family}: the output of its layer {layer}, from embeddings, is not the "
                    "hidden state that it gives for tokens"
                )
        if not _is_close(logits[row], own_logits, tolerance):
            raise ValueError(f"{family}: its final hidden states do not give its logits")


def _own_states(
    model: LanguageModel, sequence: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Returns hidden states `[t, d_in]` after each layer, and logits `[t, vocab_size]`.

    Both are those of the last t = `_NUM_READ_ON` tokens, as the model computes them.
    """
    output = model.causal_lm(
        sequence[None].to(model.device), output_hidden_states=True, use_cache=False
    )
    states = [state[0, -_NUM_READ_ON:] for state in output.hidden_states[1:]]
    return states, output.logits[0, -_NUM_READ_ON:].float()


def _read_states(
    model: LanguageModel, sequences: list[list[int]]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Returns the same as this package reads them, `[b, t, d_in]` and `[b, t, vocab_size]`."""
    token_ids, mask = pad_left(sequences, model.device)
    first, last = token_ids[:, :-_NUM_READ_ON], token_ids[:, -_NUM_READ_ON:]
    context = Context(model, len(sequences))
    context.read(model.embed(first), mask[:, :-_NUM_READ_ON])
    states: dict[int, torch.Tensor] = {}
    layers = range(model.num_layers)
    hidden = context.read(model.embed(last), None, layers, lambda i, x: states.update({i: x}))
    return states, model.logits(hidden)


def _is_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return found.shape == expected.shape and bool(
        (found - expected).norm() <= tolerance * expected.norm()
    )
