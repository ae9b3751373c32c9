"""A store that is read while another process writes it, and whose shards go once they are used.

Shards come in windows of so many. Rows are trained on window by window, in order of the shards'
indices and not of the time at which they are finished, so that what is seen depends on the
speed of neither side. Two windows are on disk at a time, one to train on and one to fill, and the
first, of which statistics are, stays to the end.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.activations.locks import is_locked, lock_beside
from sae_jax.activations.manifest import SHARDS_NAME, read_manifest, shard_file
from sae_jax.activations.matrix import OnDemand
from sae_jax.activations.released import RELEASED_NAME, read_released, write_released
from sae_jax.activations.selection import Position
from sae_jax.activations.store import ActivationStore

# Seconds between two looks for a shard, and after which a store that nobody writes is given up.
_INTERVAL = 0.1
_PATIENCE = 5.0


class LiveStore:
    """A store in the making, opened by `LiveStore.open`.

    Attributes:
      path: the store's folder.
      window: number of shards in a window; the last may have fewer.
      ends: number of rows up to the end of each window.
      num_released: number of windows that were trained on, from the first on.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.window: int = manifest["window"]
        self.num_released = read_released(path)
        self._manifest = manifest
        self._store = ActivationStore(path, manifest, problems=())
        self._shard_ends = np.cumsum([shard["shape"][2] for shard in manifest["shards"]])
        last_shards = range(self.window, len(self._shard_ends) + self.window, self.window)
        self.ends = tuple(
            int(self._shard_ends[min(shard, len(self._shard_ends)) - 1]) for shard in last_shards
        )
        self._is_over = threading.Event()
        self._stop: threading.Event | None = None

    @classmethod
    def open(cls, path: str | os.PathLike) -> "LiveStore":
        """Opens the store that an extraction with a window has begun at `path`.

        Raises:
          ValueError: if there is no store, or it is one that is kept whole.
        """
        root = Path(path)
        manifest = read_manifest(root)
        if "window" not in manifest:
            raise ValueError(
                f"the store at {root} is kept whole; ActivationStore.open reads it, and"
                " extraction with a window makes a live one"
            )
        return cls(root, manifest)

    @property
    def layers(self) -> tuple[int, ...]:
        """0-based decoder layers, in stored order."""
        return self._store.layers

    @property
    def positions(self) -> tuple[Position, ...]:
        """Continuous-thought or token positions, or `("all",)`."""
        return self._store.positions

    @property
    def d_in(self) -> int:
        """Width of an activation."""
        return self._store.d_in

    @property
    def num_rows(self) -> int:
        """Rows of every (layer, position) slice, once all are extracted."""
        return self._store.num_rows

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of what decides the rows and their order: problems, model, settings, window."""
        return hashlib.sha256(json.dumps(self._manifest, sort_keys=True).encode()).hexdigest()

    def parse_position(self, text: str) -> Position:
        """Returns the position that a word of a command line names, as `ActivationStore` does."""
        return self._store.parse_position(text)

    def select(self, layer: int, position: Position) -> "LiveSelection":
        """Selects every row of one (layer, position) slice.

        Raises:
          ValueError: if the store has no such layer or position; the error lists those there are.
        """
        self._store.check_slice(layer, position)
        return LiveSelection(self, layer, position)

    def read(self, layer: int, position: Position, rows: slice | np.ndarray) -> np.ndarray:
        """Reads rows of a slice, float32 `[len(rows), d_in]`, and waits for those to come.

        Raises:
          ValueError: if there is no such layer, position or row, the row was removed after
            training, or it is missing and nobody extracts.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.num_rows))
        rows = self._store.check_rows(rows)
        for shard in np.unique(np.searchsorted(self._shard_ends, rows, side="right")).tolist():
            self._wait_for(shard)
        return self._store.read(layer, position, rows)

    @contextmanager
    def following(self, stop: threading.Event | None = None) -> Iterator[None]:
        """Holds the store against others that train on it, until the block ends.

        Args:
          stop: once it is set rows that are not there are not waited for, and reading them fails.

        Raises:
          ValueError: if another process trains on it.
        """
        with lock_beside(self.path / RELEASED_NAME):
            self.num_released, self._stop = read_released(self.path), stop
            self._remove_released()
            try:
                yield
            finally:
                # Threads that read ahead would wait on, and the process with them.
                self._is_over.set()
                self._is_over = threading.Event()

    def check_kept(self, row: int) -> None:
        """Refuses a start at a row that is gone.

        Raises:
          ValueError: if the row's window is released.
        """
        window = int(np.searchsorted(self.ends, row, side="right"))
        if window < self.num_released:
            raise ValueError(
                f"training would start in window {window} of the live store at {self.path}, of"
                f" which {self.num_released} of {len(self.ends)} windows were trained on and"
                " removed; go on from the checkpoints of that training, or extract anew with"
                " --overwrite"
            )

    def release(self, num_windows: int) -> None:
        """Lets the first windows go: all groups have checkpoints beyond them."""
        if num_windows > self.num_released:
            write_released(self.path, num_windows)
            self.num_released = num_windows
            self._remove_released()

    def _remove_released(self) -> None:
        for file in (self.path / SHARDS_NAME).glob("*.npy"):
            if self._is_released(int(file.stem)):
                file.unlink()

    def _is_released(self, shard: int) -> bool:
        return self.window <= shard < self.num_released * self.window

    def _wait_for(self, shard: int) -> None:
        file, is_over = self.path / shard_file(shard), self._is_over
        last_sign = time.monotonic()
        while not file.exists():
            if self._is_released(shard):
                raise ValueError(f"{file} was removed after it was trained on")
            if self._stop is not None and self._stop.is_set():
                raise ValueError(f"training was stopped while {file} was awaited")
            if is_over.is_set():
                raise ValueError(f"training ended while {file} was awaited")
            if is_locked(self.path):
                last_sign = time.monotonic()
            elif time.monotonic() - last_sign > _PATIENCE:
                raise ValueError(
                    f"{file} is missing and no process extracts to {self.path}: run its extraction"
                    " again with --resume, and then training with --resume"
                )
            is_over.wait(_INTERVAL)


@dataclass(frozen=True, eq=False)
class LiveSelection:
    """All rows of one (layer, position) slice of a live store, to train on.

    Attributes:
      store: the store that the rows come to.
      layer: 0-based decoder layer.
      position: continuous-thought or token position, or "all".
    """

    store: LiveStore
    layer: int
    position: Position

    def __len__(self) -> int:
        return self.store.num_rows

    @property
    def matrix(self) -> OnDemand:
        """The activations `[n, d_in]`, whose rows are read when they are there."""
        read = partial(self.store.read, self.layer, self.position)
        return OnDemand((len(self), self.store.d_in), read, live=self.store)
