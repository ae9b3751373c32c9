"""Which tokens a latent's direction speaks for, read through a model's unembedding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_TOKENS = 8
_BLOCK = 256


class Vocabulary(NamedTuple):
    """A model's tokens and what they are read by.

    Attributes:
      tokens: text of each of V tokens.
      unembedding: the row by which each token's logit is read from a hidden state, `[V, D]`.
        Where a norm with weights comes before, the rows hold those weights.
    """

    tokens: Sequence[str]
    unembedding: np.ndarray


class LogitLens(NamedTuple):
    """Tokens whose logits a latent raises and lowers most.

    Attributes:
      raised, lowered: token indices, strongest first, int `[F, 8]`.
      raised_by, lowered_by: change of the logit at z = 1, before any norm, `[F, 8]`.
    """

    raised: np.ndarray
    raised_by: np.ndarray
    lowered: np.ndarray
    lowered_by: np.ndarray


def logit_lens(w_dec: np.ndarray, vocabulary: Vocabulary) -> LogitLens:
    """Multiplies decoder rows `[F, D]` by the unembedding.

    It takes no notice of the layers in between, and says more of late layers than of early ones.

    Raises:
      ValueError: if the widths, or the numbers of tokens, do not agree.

    References:
      nostalgebraist 2020, "interpreting GPT: the logit lens",
      https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru
    """
    tokens, unembedding = vocabulary
    if unembedding.shape != (len(tokens), w_dec.shape[1]):
        raise ValueError(
            f"the unembedding has shape {unembedding.shape}; expected"
            f" {(len(tokens), w_dec.shape[1])}, the number of tokens and the decoder's width"
        )
    count = min(NUM_TOKENS, len(tokens))
    parts = []
    for start in range(0, len(w_dec), _BLOCK):
        logits = w_dec[start : start + _BLOCK] @ unembedding.T
        parts.append([part for sign in (1, -1) for part in _largest(sign * logits, sign, count)])
    return LogitLens(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _largest(logits: np.ndarray, sign: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = np.argpartition(-logits, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(logits, found, 1), axis=1, kind="stable")
    found = np.take_along_axis(found, order, 1)
    return found, sign * np.take_along_axis(logits, found, 1)
