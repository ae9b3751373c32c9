"""Measures what a thought is worth: replaces it at one layer and position, and scores the answer.

The model reads the prompt and thinks; at one pass the output of one layer is replaced by
given activations, the layers above and all later passes go on from there, and the gold
answer is read and scored. Activations come and go as NumPy arrays, so that an SAE on the
JAX side can reconstruct or edit them in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from sae_jax.extraction.answers import read_tokens
from sae_jax.extraction.context import Context
from sae_jax.extraction.continuous_thoughts import (
    NUM_POSITIONS,
    check_feedback,
    read_prompts,
    think_on,
)
from sae_jax.extraction.language_model import LanguageModel
from sae_jax.problems import Problem


@dataclass(frozen=True, eq=False)
class PatchedAnswers:
    """The gold answers of n problems, scored after thoughts that may be replaced.

    Attributes:
      model: the language model.
      problems: n problems, each with its answer.
      layer, position: layer and position at which a thought is replaced.
      feedback: "codi", "hidden" or "soft".
      num_thoughts: number of thoughts before the answer; a CODI model reads its begin-of-thought
        token at one more position, before them.
      answer_prefix: text that the model reads before the answer, without a score.
      batch_size: number of sequences that the model reads at once.

    Raises:
      ValueError: if the model has no such feedback mode, layer or position, or a problem has no
        answer.
    """

    model: LanguageModel
    problems: Sequence[Problem]
    layer: int
    position: int
    feedback: str = "soft"
    num_thoughts: int = NUM_POSITIONS
    answer_prefix: str = "The answer is:"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_feedback(self.model, self.feedback)
        self.model.check_layers([self.layer])
        if not 0 <= self.position < self.num_positions:
            raise ValueError(f"position {self.position} is not among 0 to {self.num_positions - 1}")
        unanswered = [problem.id for problem in self.problems if not problem.answer]
        if unanswered:
            raise ValueError(f"problems without an answer to score: {', '.join(unanswered[:5])}")

    @property
    def num_positions(self) -> int:
        """Number of passes between the prompt and the answer."""
        return self.num_thoughts + (self.model.thought_tokens is not None)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Number of tokens of each gold answer, int `[n]`."""
        return np.array([len(self._answer_ids(problem)) for problem in self.problems])

    @cached_property
    def unpatched(self) -> np.ndarray:
        """`log_probability` with no thought replaced, float64 `[n]`."""
        return self.log_probability(None)

    def log_probability(self, activations: np.ndarray | None) -> np.ndarray:
        """Returns each gold answer's log-probability, in nats over its tokens, float64 `[n]`.

        Args:
          activations: values that replace each problem's thought, `[n, d_in]`; None leaves the
            thoughts alone.

        Raises:
          ValueError: if `activations` is of another shape.
        """
        if activations is None:
            return self._scores(None)[0]
        expected = (len(self.problems), self.model.d_in)
        if activations.shape != expected:
            raise ValueError(f"activations have shape {activations.shape}, expected {expected}")
        return self.log_probabilities(activations[None])[0]

    def log_probabilities(self, replacements: np.ndarray) -> np.ndarray:
        """Returns `log_probability` of several replacements at once, float64 `[r, n]`.

        A prompt and the thoughts before `position` are read once for all of them, and
        replacements that are equal for a problem are scored once.

        Args:
          replacements: values that replace each problem's thought, `[r, n, d_in]`.

        Raises:
          ValueError: if `replacements` is of another shape.
        """
        expected = (len(self.problems), self.model.d_in)
        if replacements.ndim != 3 or replacements.shape[1:] != expected:
            raise ValueError(
                f"replacements have shape {replacements.shape}, expected (r, {expected[0]}, "
                f"{expected[1]})"
            )
        return self._scores(replacements)

    def cross_entropy(self, activations: np.ndarray | None) -> float:
        """Returns the mean negative log-probability of a gold answer's token, in nats."""
        scores = self.unpatched if activations is None else self.log_probability(activations)
        return float(-scores.sum() / self.num_tokens.sum())

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return self.model.prompts(self.problems, num_thoughts=self.num_positions)

    def _scores(self, replacements: np.ndarray | None) -> np.ndarray:
        scores = np.empty((1 if replacements is None else len(replacements), len(self.problems)))
        # Prompts of about one length have little padding.
        order = np.argsort([len(prompt) for prompt in self._prompts], kind="stable")
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            of_batch = None if replacements is None else replacements[:, batch]
            scores[:, batch] = self._batch_scores(batch, of_batch)
        return scores

    @torch.inference_mode()
    def _batch_scores(self, batch: np.ndarray, replacements: np.ndarray | None) -> np.ndarray:
        """Scores of the problems in a batch, `[r, b]`, under replacements `[r, b, d_in]`."""
        context, hidden = read_prompts(self.model, [self._prompts[i] for i in batch])
        hidden = think_on(context, hidden, range(self.position), self.feedback)
        answers = [self._answer_ids(self.problems[i]) for i in batch]
        if replacements is None:
            return self._answer_scores(context, hidden, answers, None)[None]
        # Each pair of a problem and one of its distinct replacements is a sequence to score.
        pairs = [np.unique(of, axis=0, return_inverse=True) for of in replacements.swapaxes(0, 1)]
        counts = [len(patches) for patches, _ in pairs]
        of_problem = np.repeat(np.arange(len(batch)), counts)
        patches = np.concatenate([patches for patches, _ in pairs])
        scores = []
        for start in range(0, len(patches), self.batch_size):
            rows = slice(start, start + self.batch_size)
            problems = torch.tensor(of_problem[rows], device=hidden.device)
            scores.append(
                self._answer_scores(
                    context.select(problems),
                    hidden[problems],
                    [answers[i] for i in of_problem[rows]],
                    torch.tensor(patches[rows]),
                )
            )
        by_problem = np.split(np.concatenate(scores), np.cumsum(counts)[:-1])
        columns = [of[index] for of, (_, index) in zip(by_problem, pairs, strict=True)]
        return np.stack(columns, axis=1)

    def _answer_scores(
        self,
        context: Context,
        hidden: torch.Tensor,
        answers: Sequence[Sequence[int]],
        patches: torch.Tensor | None,
    ) -> np.ndarray:
        """Thinks on from `position` and scores answers, `[b]`; patches are `[b, d_in]`."""

        def replace(layer: int, position: int, output: torch.Tensor) -> torch.Tensor | None:
            if patches is None or position != self.position:
                return None
            return patches.to(output)

        think_on(
            context,
            hidden,
            range(self.position, self.num_positions),
            self.feedback,
            layers=[self.layer],
            hook=replace,
        )
        prefix = self._prefix_ids()
        rows = [torch.tensor([*prefix, *answer]) for answer in answers]
        # Whatever pads a shorter answer comes after it, where nothing that is scored attends.
        token_ids = pad_sequence(rows, batch_first=True)
        # What follows the last token is not scored, so the model need not read it.
        hidden = read_tokens(context, token_ids[:, :-1])[:, len(prefix) - 1 :]
        predicted = self.model.logits(hidden).log_softmax(dim=-1).cpu()
        per_token = predicted.gather(-1, token_ids[:, len(prefix) :, None])[..., 0].double()
        sums = [row[: len(ids)].sum() for row, ids in zip(per_token, answers, strict=True)]
        return torch.stack(sums).numpy()

    def _prefix_ids(self) -> list[int]:
        tokens = self.model.thought_tokens
        ends = [] if tokens is None else [tokens.end, tokens.eos]
        return [i for i in ends if i is not None] + self._plain_ids(self.answer_prefix)

    def _answer_ids(self, problem: Problem) -> list[int]:
        return self._plain_ids(f" {problem.answer}")

    def _plain_ids(self, text: str) -> list[int]:
        return self.model.tokenizer(text, add_special_tokens=False)["input_ids"]


def loss_recovered(
    answers: PatchedAnswers, reconstructions: np.ndarray, mean_activation: np.ndarray
) -> dict[str, float]:
    """Measures how much of what a thought is worth an SAE's reconstruction keeps.

    Args:
      answers: the scored problems and the place of the thought.
      reconstructions: reconstructions of the n problems' activations there, `[n, d_in]`.
      mean_activation: the mean activation there, `[d_in]`, as the best constant.

    Returns:
      `ce_clean`, `ce_zero`, `ce_mean` and `ce_sae`, the gold answer's cross-entropy with
      the thought left alone, zeroed, replaced by the mean and by its reconstruction;
      `loss_recovered` of the reconstruction, 1 being as good as the thought itself and 0
      no better than zero; and `loss_recovered_mean` of the mean. Where zeroing does not
      raise the cross-entropy there is nothing to recover and the fractions mean nothing.
    """
    replacements = {
        "clean": None,
        "zero": np.zeros(reconstructions.shape, np.float32),
        "mean": np.broadcast_to(mean_activation, reconstructions.shape),
        "sae": reconstructions,
    }
    ce = {f"ce_{name}": answers.cross_entropy(x) for name, x in replacements.items()}
    bounds = ce["ce_clean"], ce["ce_zero"]
    return ce | {
        "loss_recovered": loss_recovered_fraction(*bounds, ce["ce_sae"]),
        "loss_recovered_mean": loss_recovered_fraction(*bounds, ce["ce_mean"]),
    }


def loss_recovered_fraction(ce_clean: float, ce_zero: float, ce_replaced: float) -> float:
    """Returns (CE_zero - CE_replaced) / (CE_zero - CE_clean), of cross-entropies of one text.

    It is 1 for a replacement as good as the activation itself, 0 for one no better than zero,
    and NaN where zeroing changes nothing.
    """
    lost = ce_zero - ce_clean
    return (ce_zero - ce_replaced) / lost if lost else float("nan")


def causal_effect(
    answers: PatchedAnswers, reconstructions: np.ndarray, edited: np.ndarray
) -> np.ndarray:
    """Returns how each gold answer's log-probability changes when a reconstruction is edited.

    Args:
      answers: the scored problems and the place of the thought.
      reconstructions: unedited reconstructions, `[n, d_in]`.
      edited: reconstructions decoded from edited latents (`sae_jax.features.interventions`),
        `[n, d_in]`.

    Returns:
      The edited minus the unedited ones, in nats, float64 `[n]`: negative where the edit hurts.
    """
    return answers.log_probability(edited) - answers.log_probability(reconstructions)
