"""Samples that are read by parts: arrays in memory, and what is read like one."""

from collections.abc import Callable, Iterator
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


class OnDemand:
    """A matrix whose rows are read when they are asked for, and not kept."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, int], read: Callable[[slice | np.ndarray], np.ndarray]):
        """Reads nothing.

        Args:
          shape: (n, D).
          read: gives some of the rows, float32 `[len(rows), D]`.
        """
        self.shape = shape
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._read(rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def blocks(x: Matrix) -> Iterator[np.ndarray]:
    """Cuts a matrix into blocks of whole rows, in order; those of an array are views of it.

    Statistics are sums over the blocks, so that they are the same bits wherever the samples lie.
    """
    num_rows, width = x.shape
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, num_rows, step):
        yield x[start : min(start + step, num_rows)]
