"""The validation samples of one data slice, as reports of latents need them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_jax.activations.selection import Selection
from sae_jax.features.properties import property_matrix
from sae_jax.problems import Problem
from sae_jax.report.dashboard.pack import numbers


class Samples:
    """The validation samples of one data slice, with what their problems hold.

    Attributes:
      x: activations, float32 `[n, D]`.
      problems: the P distinct problems, in order of their first sample.
      problem_of_sample: index of each sample's problem, int `[n]`.
      properties: which sample has which property, bool `[n, P]`.
      names: names of the properties.
      texts: text of each sample that the published rule reads.
      tokens: the text of every sample of each problem, P lists; `None` if nobody gave them.
    """

    def __init__(self, selection: Selection, tokens: Mapping[str, Sequence[str]] | None = None):
        """Reads the samples.

        Args:
          selection: samples of one data slice.
          tokens: for samples that are tokens, the texts of each problem's, by its id.

        Raises:
          ValueError: if a problem has another number of samples than of tokens.
        """
        self.x = selection.read()
        index: dict[str, int] = {}
        of_sample = selection.problems
        self.problem_of_sample = np.array(
            [index.setdefault(problem.id, len(index)) for problem in of_sample]
        )
        _, first = np.unique(self.problem_of_sample, return_index=True)
        self.problems = [of_sample[i] for i in first]
        of_problem, self.names = property_matrix(self.problems)
        self.properties = of_problem[self.problem_of_sample]
        texts = [" | ".join(problem.steps) for problem in self.problems]
        self.texts = [texts[i] for i in self.problem_of_sample]
        self.tokens: list[list[str]] | None = None
        if tokens is not None:
            self.tokens = [list(tokens.get(problem.id, ())) for problem in self.problems]
        counts = np.bincount(self.problem_of_sample, minlength=len(self.problems))
        for problem, count, found in zip(self.problems, counts, self.tokens or (), strict=False):
            if len(found) != count:
                raise ValueError(
                    f"problem {problem.id} has {count} samples and {len(found)} tokens; expected"
                    " one for each"
                )

    @property
    def are_tokens(self) -> bool:
        """Whether a problem has several samples."""
        return len(self.problems) < len(self.x)

    def shown(self) -> dict[str, Any]:
        """The problems, with the properties of each step, and the samples of each problem."""
        steps = [step for problem in self.problems for step in problem.steps]
        held, _ = property_matrix([Problem(step, "", steps=(step,)) for step in steps])
        of_step = iter([np.flatnonzero(row).tolist() for row in held])
        return {
            "names": self.names,
            "share": numbers(self.properties.mean(axis=0)),
            "problems": [
                [
                    problem.id,
                    problem.question,
                    problem.answer,
                    [[step, next(of_step)] for step in problem.steps],
                ]
                for problem in self.problems
            ],
            "tokens": self.tokens,
            "problem_of_sample": self.problem_of_sample.tolist(),
        }
