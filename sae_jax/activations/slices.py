"""Turns what a user passes as data into checked samples, by the slice that they come from."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from sae_jax.activations.arrays import as_float32
from sae_jax.activations.live import LiveSelection, LiveStore
from sae_jax.activations.matrix import Live, Matrix, OnDemand, blocks, live_of, measured
from sae_jax.activations.selection import Position, Selection, Split
from sae_jax.activations.store import ActivationStore

DataSlice = tuple[int | None, Position | None]
"""(layer, position), or (None, None) for an array that says neither."""

ActivationData = (
    np.ndarray
    | OnDemand
    | Selection
    | LiveSelection
    | Sequence[Selection | LiveSelection]
    | Mapping[DataSlice, np.ndarray]
)


class Slices(Mapping[DataSlice, Matrix]):
    """Checked activations by the (layer, position) that they come from, float32 `[n, D]`.

    Rows of a selection of a store are read when they are asked for, so that neither all slices
    nor all of one need fit in memory. So are those of a memory-mapped array.

    Attributes:
      shapes: (n, D) of each slice.
      live: where the rows come from, if they come while training goes on. Values and statistics
        are then those of the first window; extraction checks the others.
    """

    def __init__(self, sources: Mapping[DataSlice, Any], name: str):
        """Checks every source but for its values, which are not read.

        Raises:
          ValueError: if a source is not what `slices_of` takes.
        """
        self._names = {data_slice: f"{name}{of_slice(data_slice)}" for data_slice in sources}
        self._matrices: dict[DataSlice, Matrix] = {}
        self.shapes: dict[DataSlice, tuple[int, int]] = {}
        for data_slice, source in sources.items():
            self._matrices[data_slice] = x = _matrix(source, self._names[data_slice])
            self.shapes[data_slice] = x.shape[0], x.shape[1]
        if len(widths := {d_in for _, d_in in self.shapes.values()}) > 1:
            raise ValueError(
                f"{name} mixes activations of widths {sorted(widths)}; expected one width"
            )
        lives = {live_of(x) for x in self._matrices.values()}
        if len(lives) > 1:
            raise ValueError(f"{name} is not all of one LiveStore; expected all or nothing of it")
        self.live: Live | None = lives.pop()

    def __getitem__(self, data_slice: DataSlice) -> Matrix:
        return self._matrices[data_slice]

    def __iter__(self) -> Iterator[DataSlice]:
        return iter(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)

    def renamed(self, data_slice: DataSlice) -> Self:
        """The one slice that there is, not read yet, under another (layer, position)."""
        other = copy.copy(self)
        for name in ("_names", "_matrices", "shapes"):
            ((_, value),) = getattr(self, name).items()
            setattr(other, name, {data_slice: value})
        return other

    def check_values(self) -> None:
        """Reads all samples, or of live ones the first window, which it waits for.

        Raises:
          ValueError: if values are not finite in float32.
        """
        _ = self._statistics

    @cached_property
    def offset_severity(self) -> dict[DataSlice, float]:
        """Norm of each slice's mean over that of its standard deviations."""
        return {data_slice: severity for data_slice, (_, severity) in self._statistics.items()}

    @cached_property
    def constant(self) -> list[DataSlice]:
        """The slices whose rows are all equal, so that there is no variance to explain."""
        return [data_slice for data_slice, (equal, _) in self._statistics.items() if equal]

    @cached_property
    def _statistics(self) -> dict[DataSlice, tuple[bool, float]]:
        """What `_checked` says of each slice, which is read once, block by block."""
        return {
            data_slice: _checked(measured(x), self._names[data_slice])
            for data_slice, x in self._matrices.items()
        }

    @property
    def d_in(self) -> int:
        """Width D of an activation."""
        return next(iter(self.shapes.values()))[1]


def offset_severity(x: Matrix) -> float:
    """Norm of the mean of samples `[n, D]` over that of their standard deviations; infinite where
    they do not vary."""
    moments = _Moments(x.shape[1])
    for block in blocks(x):
        moments.add(block)
    return moments.offset_severity()


class _Moments:
    """Number, mean and sum of squared deviations of samples seen, float64 `[D]`.

    Blocks are merged as Chan, Golub and LeVeque do (1983, doi.org/10.1080/00031305.1983.10483115).
    """

    def __init__(self, width: int):
        self._count, self._mean, self._deviation = 0, np.zeros(width), np.zeros(width)

    def add(self, block: np.ndarray) -> None:
        """Adds samples `[n, D]`."""
        mean = block.mean(axis=0, dtype=np.float64)
        deviation = block.var(axis=0, dtype=np.float64) * len(block)
        count = self._count + len(block)
        difference = mean - self._mean
        self._mean += difference * (len(block) / count)
        self._deviation += deviation + difference**2 * (self._count * len(block) / count)
        self._count = count

    def offset_severity(self) -> float:
        """Norm of the mean over that of the standard deviations."""
        spread = math.sqrt(self._deviation.sum() / self._count)
        return float(np.linalg.norm(self._mean) / spread) if spread else math.inf


def _checked(x: Matrix, name: str) -> tuple[bool, float]:
    """Whether all rows are equal, and the offset severity, of samples that are finite."""
    first, is_constant, moments = x[:1], True, _Moments(x.shape[1])
    num_seen, num_bad, first_bad = 0, 0, 0
    for block in blocks(x):
        bad_rows = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad_rows) and not num_bad:
            first_bad = num_seen + bad_rows[0]
        num_bad += len(bad_rows)
        num_seen += len(block)
        if not num_bad:
            is_constant = is_constant and bool((block == first).all())
            moments.add(block)
    if num_bad:
        raise ValueError(
            f"{name} is not finite in {num_bad} of {num_seen} rows, the first of them"
            f" row {first_bad}; expected finite float32 values"
        )
    return is_constant, moments.offset_severity()


def slices_of(data: ActivationData, name: str) -> Slices:
    """Returns the samples in `data` by the (layer, position) that they come from.

    Args:
      data: one float array `[n, D]` of NumPy, JAX or PyTorch; one selection of a store;
        several of them; what `side_by_side` gives; or a mapping from (layer, position) to arrays.
      name: name of `data` in errors.

    Returns:
      Samples `[n, D]`, all of one width D. Values are not read yet; see `Slices.check_values`.

    Raises:
      ValueError: if there is no slice, or the same one twice, or an array is not 2-D, not
        floating, masked, empty, or of another width than the rest.
    """
    sources: dict[DataSlice, Any] = {}
    for data_slice, source in _unchecked_slices(data):
        if not (isinstance(data_slice, tuple) and len(data_slice) == 2):
            raise ValueError(f"{name} names a slice {data_slice!r}; expected (layer, position)")
        if data_slice in sources:
            raise ValueError(
                f"{name} holds{of_slice(data_slice).removeprefix(' of')} more than once"
            )
        sources[data_slice] = source
    if not sources:
        raise ValueError(f"{name} holds no activations")
    return Slices(sources, name)


def _unchecked_slices(data: ActivationData) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, Mapping):
        yield from data.items()
    elif isinstance(data, Selection | LiveSelection):
        yield (data.layer, data.position), data
    elif isinstance(data, Sequence) and all(
        isinstance(part, Selection | LiveSelection) for part in data
    ):
        yield from (((part.layer, part.position), part) for part in data)
    else:
        yield (None, None), data


def of_slice(data_slice: DataSlice) -> str:
    """Says of which slice some activations are, after their name in a message."""
    layer, position = data_slice
    return "" if layer is None else f" of layer {layer}, position {position}"


def _matrix(source: Any, name: str) -> Matrix:
    """What is passed or selected, if it may be samples, as float32 once it is read."""
    if isinstance(source, (str, Path, ActivationStore, LiveStore, Split)):
        raise ValueError(
            f"{name} is a {type(source).__name__}; expected a float array [n, d_in] or a selection,"
            " as store.select(layer=..., position=...).split().train"
        )
    if isinstance(source, Selection | LiveSelection):
        return source.matrix
    if isinstance(source, OnDemand):
        return source
    # NumPy's arrays are converted by parts, as they may be memory maps.
    by_parts = isinstance(source, np.ndarray) and not isinstance(source, np.ma.MaskedArray)
    array = source if by_parts else as_float32(source, name)
    as_float32(array[:0] if array.ndim else array, name)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; expected [n, d_in], neither of them 0")
    if array.dtype == np.float32:
        return as_float32(array, name)
    return OnDemand(array.shape, lambda rows: as_float32(array[rows], name))
