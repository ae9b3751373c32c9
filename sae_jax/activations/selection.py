"""Selects rows of one slice of a store, and splits them into training and validation samples."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sae_jax.activations.matrix import OnDemand, blocks
from sae_jax.problems import Problem

Position = int | str
"""A continuous thought's or token's index, negative from a prompt's end, or "all" tokens."""


class Rows(Protocol):
    """The store of a selection, as far as the selection needs it; see `ActivationStore`."""

    path: Path
    manifest: dict[str, Any]
    problems: list[Problem]

    @property
    def row_problems(self) -> np.ndarray:
        """Index into `problems` of every row, int64 `[num_rows]`."""

    @property
    def d_in(self) -> int:
        """Width of an activation."""

    @property
    def fingerprint(self) -> str:
        """Sha256 of what the store holds."""

    def check_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns row indices as int64 `[n]`, all of them the store's."""

    def read(self, layer: int, position: Position, rows: np.ndarray) -> np.ndarray:
        """Reads rows of a slice, float32 `[len(rows), d_in]`."""


@dataclass(frozen=True, eq=False)
class Split:
    """The two halves of `Selection.split`."""

    train: "Selection"
    val: "Selection"

    def within_norm(self, max_norm_ratio: float) -> "Split":
        """Leaves out the rows of extreme norm, which attention sinks have, on both sides.

        A few such rows hold most of the variance, so that a loss and scores over all rows say
        little of the others.

        Args:
          max_norm_ratio: largest norm of a row that stays, as a multiple of the median norm of
            the training rows.

        Raises:
          ValueError: if the ratio is below 1, or no validation row stays.
        """
        if not max_norm_ratio >= 1:
            raise ValueError(f"max_norm_ratio is {max_norm_ratio}; allowed is 1 or more")
        norms = [
            np.concatenate([np.linalg.norm(rows, axis=1) for rows in blocks(side.matrix)])
            for side in (self.train, self.val)
        ]
        bound = max_norm_ratio * np.median(norms[0])
        if not (norms[1] <= bound).any():
            raise ValueError(
                f"max_norm_ratio={max_norm_ratio} leaves none of {len(self.val)} validation rows"
            )
        settings = {"max_norm_ratio": float(max_norm_ratio)}
        train, val = (
            side._subset(np.flatnonzero(of_side <= bound), settings)
            for side, of_side in zip((self.train, self.val), norms, strict=True)
        )
        return Split(train, val)


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows of one (layer, position) slice of a store, read when they are asked for.

    Attributes:
      store: the store that the rows are in.
      layer: 0-based decoder layer.
      position: continuous-thought or token position, or "all".
      rows: indices of the selected rows in the store, int64 `[n]`.
      settings: arguments of `split` and `within_norm` by which the rows were chosen.

    Raises:
      ValueError: if a row is not one of the store's.
    """

    store: Rows
    layer: int
    position: Position
    rows: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "rows", self.store.check_rows(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def activations(self) -> np.ndarray:
        """The activations, float32 `[n, d_in]`, kept in memory once read."""
        return self.read()

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """The problem of each row, `n` of them."""
        return tuple(self.store.problems[i] for i in self.store.row_problems[self.rows])

    @property
    def matrix(self) -> OnDemand:
        """The activations `[n, d_in]`, whose rows are read when they are asked for."""
        return OnDemand((len(self), self.store.d_in), self.read)

    def read(self, indices: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Reads some of the selection's rows, float32 `[len(indices), d_in]`, and keeps nothing.

        `indices` mean what they mean to NumPy: negative ones count from the selection's end.

        Raises:
          IndexError: if an index is beyond the selection.
        """
        return self.store.read(self.layer, self.position, self.rows[indices])

    def split(self, train_fraction: float = 0.8, seed: int = 42) -> Split:
        """Splits by problem: all rows of one problem go to the same side.

        With one row a problem this is scikit-learn's `train_test_split(rows,
        train_size=train_fraction, random_state=seed)`, in that order: of
        `RandomState(seed).permutation(n)` the first `n_val` validate, the rest train.

        Raises:
          ValueError: if `train_fraction` leaves a side without a problem.
        """
        row_problems = self.store.row_problems[self.rows]
        # Without sorting, as there may be tens of millions of rows.
        is_selected = np.zeros(row_problems.max(initial=-1) + 1, bool)
        is_selected[row_problems] = True
        problems = np.flatnonzero(is_selected)
        num_problems = len(problems)
        num_train = int(np.floor(train_fraction * num_problems))
        num_val = num_problems - num_train
        if num_train < 1 or num_val < 1:
            raise ValueError(
                f"train_fraction={train_fraction} of {num_problems} problems leaves {num_train} to "
                f"train and {num_val} to validate; both sides need at least one"
            )
        # The legacy generator is the published split's; a new one would shuffle differently.
        order = np.random.RandomState(seed).permutation(num_problems)  # noqa: NPY002
        rank_of_problem = np.empty(len(is_selected), np.int64)
        rank_of_problem[problems[order]] = np.arange(num_problems)
        rank = rank_of_problem[row_problems]
        rows_by_rank = np.argsort(rank, kind="stable")
        num_val_rows = int(np.count_nonzero(rank < num_val))
        settings = {"train_fraction": float(train_fraction), "split_seed": int(seed)}
        return Split(
            train=self._subset(rows_by_rank[num_val_rows:], settings),
            val=self._subset(rows_by_rank[:num_val_rows], settings),
        )

    def _subset(self, indices: np.ndarray, settings: Mapping[str, Any]) -> "Selection":
        return dataclasses.replace(
            self, rows=self.rows[indices], settings={**self.settings, **settings}
        )
