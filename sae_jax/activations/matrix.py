"""Samples that are read by parts: arrays in memory, and what is read like one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from threading import Event
from typing import Any, Protocol

import numpy as np

# Size of a block in float32. Its work should outweigh its start, and copies of it be little.
BLOCK_BYTES = 2**24


class Matrix(Protocol):
    """Samples, float32 `[n, D]`: a NumPy array, or an `OnDemand`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """Some of the rows, in the order asked for, float32 `[len(rows), D]`."""


class Live(Protocol):
    """Rows that come in windows and go once they are trained on; see `LiveStore`."""

    ends: tuple[int, ...]
    num_released: int

    @property
    def fingerprint(self) -> str:
        """Sha256 of what decides the rows and their order."""

    def following(self, stop: Event | None = None) -> AbstractContextManager[None]:
        """Holds the rows against others that train on them, until told to stop."""

    def check_kept(self, row: int) -> None:
        """Refuses a start at a row that is gone."""

    def release(self, num_windows: int) -> None:
        """Lets the first windows go."""


class OnDemand:
    """A matrix whose rows are read when they are asked for, and not kept.

    Attributes:
      shape: (n, D).
      live: where the rows come from, if they come while training goes on.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        shape: tuple[int, int],
        read: Callable[[slice | np.ndarray], np.ndarray],
        live: Live | None = None,
    ):
        """Reads nothing.

        Args:
          shape: (n, D).
          read: gives some of the rows, float32 `[len(rows), D]`.
          live: where the rows come from, if they come while training goes on.
        """
        self.shape = shape
        self._read = read
        self.live = live

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._read(rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def live_of(x: Matrix) -> Live | None:
    """Where the rows of samples come from, if they come while training goes on."""
    return x.live if isinstance(x, OnDemand) else None


def measured(x: Matrix) -> Matrix:
    """The samples that statistics are of: all, or of live ones the first window, which stays."""
    live = live_of(x)
    return x if live is None else OnDemand((live.ends[0], x.shape[1]), x.__getitem__)


def blocks(x: Matrix) -> Iterator[np.ndarray]:
    """Cuts a matrix into blocks of whole rows, in order; those of an array are views of it.

    Statistics are sums over the blocks, so that they are the same bits wherever the samples lie.
    """
    num_rows, width = x.shape
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, num_rows, step):
        yield x[start : min(start + step, num_rows)]
