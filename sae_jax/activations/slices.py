"""Turns what a user passes as data into checked arrays, by the slice that they come from."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from sae_jax.activations.arrays import as_float32
from sae_jax.activations.selection import Position, Selection, Split
from sae_jax.activations.store import ActivationStore

DataSlice = tuple[int | None, Position | None]
"""(layer, position), or (None, None) for an array that says neither."""

ActivationData = np.ndarray | Selection | Sequence[Selection] | Mapping[DataSlice, np.ndarray]


class Slices(Mapping[DataSlice, np.ndarray]):
    """Checked activations by the (layer, position) that they come from, float32 `[n, D]`.

    A selection of a store is read whenever it is asked for, so that a sweep over many slices
    holds one at a time.

    Attributes:
      shapes: (n, D) of each slice.
      offset_severity: norm of each slice's mean over that of its standard deviations.
      constant: the slices whose rows are all equal, so that there is no variance to explain.
    """

    def __init__(self, sources: Mapping[DataSlice, Any], name: str):
        """Checks every source, reading each once.

        Raises:
          ValueError: if a source is not what `slices_of` takes.
        """
        self._sources = dict(sources)
        self._names = {key: f"{name}{of_slice(key)}" for key in sources}
        self.shapes: dict[DataSlice, tuple[int, int]] = {}
        self.constant: list[DataSlice] = []
        self.offset_severity: dict[DataSlice, float] = {}
        for data_slice in sources:
            x = self[data_slice]
            self.shapes[data_slice] = x.shape[0], x.shape[1]
            if (x == x[0]).all():
                self.constant.append(data_slice)
            self.offset_severity[data_slice] = offset_severity(x)
        if len(widths := {d_in for _, d_in in self.shapes.values()}) > 1:
            raise ValueError(
                f"{name} mixes activations of widths {sorted(widths)}; expected one width"
            )

    def __getitem__(self, data_slice: DataSlice) -> np.ndarray:
        name = self._names[data_slice]
        array = as_float32(_read(self._sources[data_slice], name), name)
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(
                f"{name} has shape {array.shape}; expected [n, d_in], neither of them 0"
            )
        bad_rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if bad_rows.size:
            raise ValueError(
                f"{name} is not finite in {bad_rows.size} of {len(array)} rows, the first of them"
                f" row {bad_rows[0]}; expected finite float32 values"
            )
        return array

    def __iter__(self) -> Iterator[DataSlice]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def renamed(self, data_slice: DataSlice) -> Self:
        """The one slice that there is, under another (layer, position)."""
        other = copy.copy(self)
        ((before, source),) = self._sources.items()
        other._sources = {data_slice: source}
        other._names = {data_slice: self._names[before]}
        other.shapes = {data_slice: self.shapes[before]}
        other.offset_severity = {data_slice: self.offset_severity[before]}
        other.constant = [data_slice] * len(self.constant)
        return other

    @property
    def d_in(self) -> int:
        """Width D of an activation."""
        return next(iter(self.shapes.values()))[1]


def offset_severity(x: np.ndarray) -> float:
    """Norm of the mean of samples `[n, D]` over that of their standard deviations; infinite where
    they do not vary."""
    mean = np.linalg.norm(x.mean(axis=0, dtype=np.float64))
    deviation = np.linalg.norm(x.std(axis=0, dtype=np.float64))
    return float(mean / deviation) if deviation else math.inf


def slices_of(data: ActivationData, name: str) -> Slices:
    """Returns the arrays in `data` by the (layer, position) that they come from.

    Args:
      data: one float array `[n, D]` of NumPy, JAX or PyTorch; one selection of a store;
        several of them; or a mapping from (layer, position) to arrays.
      name: name of `data` in errors.

    Returns:
      float32 arrays `[n, D]`, all of one width D.

    Raises:
      ValueError: if there is no slice, or the same one twice, or an array is not 2-D, not
        floating, masked, empty, not finite in float32, or of another width than the rest.
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
    elif isinstance(data, Selection):
        yield (data.layer, data.position), data
    elif isinstance(data, Sequence) and all(isinstance(part, Selection) for part in data):
        yield from (((part.layer, part.position), part) for part in data)
    else:
        yield (None, None), data


def of_slice(data_slice: DataSlice) -> str:
    """Says of which slice some activations are, after their name in a message."""
    layer, position = data_slice
    return "" if layer is None else f" of layer {layer}, position {position}"


def _read(source: Any, name: str) -> Any:
    """What is passed or selected, if it may be an array."""
    if isinstance(source, (str, Path, ActivationStore, Split)):
        raise ValueError(
            f"{name} is a {type(source).__name__}; expected a float array [n, d_in] or a selection,"
            " as store.select(layer=..., position=...).split().train"
        )
    return source.read() if isinstance(source, Selection) else source
