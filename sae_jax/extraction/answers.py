"""Answers problems after continuous thoughts, which shows whether a checkpoint works."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from sae_jax.extraction.context import Context
from sae_jax.extraction.continuous_thoughts import NUM_POSITIONS, think
from sae_jax.extraction.extract import BATCH_SIZE
from sae_jax.extraction.language_model import LanguageModel
from sae_jax.problems import Problem

_NUMBER = re.compile(r"-?\d+\.?\d*")


@dataclass(frozen=True)
class Evaluation:
    """Holds what a model answered, in problem order, and how many answers were right."""

    answers: tuple[str, ...]
    num_correct: int

    @property
    def num_problems(self) -> int:
        """Number of problems answered."""
        return len(self.answers)

    @property
    def accuracy(self) -> float:
        """Share of right answers, from 0 to 1."""
        return self.num_correct / self.num_problems


def evaluate(
    problems: Sequence[Problem],
    model: LanguageModel,
    *,
    feedback: str = "soft",
    num_thoughts: int = NUM_POSITIONS,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = 256,
    progress: bool = True,
) -> Evaluation:
    """Lets a model think and answer greedily, and compares last numbers with the gold answers.

    As in the official CODI evaluation, `num_thoughts` embeddings follow the begin-of-thought
    token, one more than the experiment's positions hold.

    Args:
      problems: word problems with numeric answers.
      model: the language model.
      feedback: "codi", "hidden" or "soft".
      num_thoughts: number of thoughts before an answer.
      batch_size: number of problems that the model reads at once.
      max_new_tokens: number of tokens after which an answer is cut off.
      progress: whether to show a progress bar.

    Raises:
      ValueError: if a problem has no numeric answer to compare with, or no prompt that the
        model can read.
    """
    gold = [_gold(problem) for problem in problems]
    prompts = model.prompts(problems, num_thoughts=num_thoughts)
    answers: list[str] = []
    with tqdm(total=len(problems), desc="evaluate", unit="problem", disable=not progress) as bar:
        for start in range(0, len(problems), batch_size):
            batch = prompts[start : start + batch_size]
            answers += _answer(model, batch, feedback, num_thoughts, max_new_tokens)
            bar.update(len(batch))
    num_correct = sum(last_number(a) == g for a, g in zip(answers, gold, strict=True))
    return Evaluation(tuple(answers), num_correct)


def last_number(text: str) -> float:
    """Returns the last number of a text without its commas, or NaN, which equals nothing."""
    numbers = _NUMBER.findall(text.replace(",", ""))
    return float(numbers[-1]) if numbers else math.nan


@torch.inference_mode()
def _answer(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    feedback: str,
    num_thoughts: int,
    max_new_tokens: int,
) -> list[str]:
    tokens = model.thought_tokens
    num_positions = num_thoughts + (tokens is not None)
    context, hidden = think(model, prompts, num_positions=num_positions, feedback=feedback)
    if tokens is not None:
        ends = [tokens.end] if tokens.eos is None else [tokens.end, tokens.eos]
        hidden = read_tokens(context, torch.tensor([ends] * len(prompts)))[:, -1]
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    answers = []
    for _ in range(max_new_tokens):
        logits = model.logits(hidden)
        if tokens is not None:
            logits = logits[:, : tokens.begin - 1]  # The added tokens are no part of an answer.
        token_ids = logits.argmax(dim=-1)
        token_ids[finished] = model.tokenizer.eos_token_id
        answers.append(token_ids)
        finished |= token_ids == model.tokenizer.eos_token_id
        if finished.all():
            break
        hidden = read_tokens(context, token_ids[:, None])[:, -1]
    return model.tokenizer.batch_decode(torch.stack(answers, dim=1), skip_special_tokens=True)


def read_tokens(context: Context, token_ids: torch.Tensor) -> torch.Tensor:
    """Reads tokens `[b, t]` on in a context, and returns final hidden states `[b, t, d_in]`."""
    return context.read(context.model.embed(token_ids.to(context.model.device)))


def _gold(problem: Problem) -> float:
    try:
        return float(problem.answer.replace(",", ""))
    except ValueError as error:
        raise ValueError(
            f"problem {problem.id} has the answer {problem.answer!r}; evaluation needs a number"
        ) from error
