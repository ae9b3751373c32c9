"""Tokens of a language model and of problems, and how their logits are read from a hidden state."""

from collections.abc import Sequence

import numpy as np
import torch

from sae_jax.extraction.language_model import LanguageModel
from sae_jax.problems import Problem


@torch.inference_mode()
def tokens_and_unembedding(model: LanguageModel) -> tuple[list[str], np.ndarray]:
    """The text of each token, and the row by which its logit is read, float32 `[V, d_in]`.

    Where an RMS norm comes before the output embedding, its weights are multiplied into the rows,
    so that they fit a hidden state that is only divided by its size.

    Raises:
      ValueError: if the model has no output embedding.
    """
    embedding = model.causal_lm.get_output_embeddings()
    if embedding is None:
        raise ValueError(f"{model.name} has no output embedding to read tokens by")
    rows = embedding.weight.detach().float().cpu()
    norm = getattr(model.decoder, "norm", None)
    if norm is not None and "RMS" in type(norm).__name__:
        # Of ones, whose size is 1, an RMS norm makes its weights, however it keeps them.
        ones = torch.ones(1, model.d_in, device=model.device, dtype=embedding.weight.dtype)
        rows = rows * norm(ones).float().cpu()
    tokens = model.tokenizer.batch_decode([[i] for i in range(len(rows))])
    return tokens, rows.numpy()


def tokens_of_problems(model: LanguageModel, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """The text of each token of the questions, by problem id, as `extract` at "all" reads them.

    Raises:
      ValueError: if a question has no tokens, or more than the model can read.
    """
    distinct = list({problem.id: problem for problem in problems}.values())
    prompts = model.prompts(distinct, templates=False)
    return {
        problem.id: model.tokenizer.batch_decode([[i] for i in ids])
        for problem, ids in zip(distinct, prompts, strict=True)
    }
