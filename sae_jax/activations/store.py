"""Reads activation stores: `.npy` shards, a manifest and the problems. It needs NumPy alone.

A store is one folder::

    manifest.json      what the activations are, and size and sha256 of every file
    problems.jsonl     one problem a line: id, question, answer, chain-of-thought steps
    shards/00000.npy   [num_layers, num_positions, num_rows, d_in], rows in problem order

The layer and position axes come first, so that one slice of a shard is one contiguous run
of bytes, read through a memory map. `writer` makes stores.
"""

import hashlib
import json
import mmap
import os
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from sae_jax.activations.manifest import (
    PROBLEMS_NAME,
    check_file,
    manifest_files,
    read_manifest,
    shard_file,
)
from sae_jax.activations.selection import Position, Selection
from sae_jax.problems import Problem, read_jsonl

LAST = "last"
# Bytes between the rows that are read, above which what lies between them is better left out:
# what Linux reads ahead of a page that is asked for.
_SPARSE = 2**17


class ActivationStore:
    """A finished store, opened for reading.

    Attributes:
      path: the store's folder.
      manifest: the parsed `manifest.json`.
      layers: 0-based decoder layers, in stored order.
      positions: continuous-thought or token positions, or `("all",)`.
      problems: every problem, in order.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], problems: Sequence[Problem]):
        self.path = path
        self.manifest = manifest
        self.layers: tuple[int, ...] = tuple(manifest["layers"])
        self.positions: tuple[Position, ...] = tuple(manifest["positions"])
        self.problems = list(problems)
        self._offsets: dict[int, int] = {}  # Bytes before the activations, by shard.
        self._parsing = threading.Lock()
        self._ends = np.cumsum([shard["shape"][2] for shard in manifest["shards"]])

    @classmethod
    def open(cls, path: str | os.PathLike) -> "ActivationStore":
        """Opens the store at `path`, and checks file sizes and the problems' checksum.

        `verify` checks the shards' checksums, which costs a full read.

        Raises:
          ValueError: if `path` holds no store, an unfinished one, one of another schema, or
            files that differ from their manifest.
        """
        root = Path(path)
        manifest = read_manifest(root)
        if "window" in manifest:
            raise ValueError(
                f"the store at {root} is live, and its shards go once they are trained on;"
                " LiveStore.open reads it"
            )
        if not manifest["finished"]:
            raise ValueError(
                f"the store at {root} is unfinished; run its extraction again with --resume"
            )
        for relative, entry in manifest_files(manifest):
            check_file(root / relative, entry, read=relative == PROBLEMS_NAME)
        return cls(root, manifest, read_jsonl(root / PROBLEMS_NAME))

    @property
    def d_in(self) -> int:
        """Width of an activation."""
        return self.manifest["d_in"]

    @property
    def num_rows(self) -> int:
        """Rows of every (layer, position) slice."""
        return int(self._ends[-1])

    @cached_property
    def row_problems(self) -> np.ndarray:
        """Index into `problems` of every row, int64 `[num_rows]`."""
        counts = [shard["rows_per_problem"] for shard in self.manifest["shards"]]
        if any(count is None for count in counts):
            return np.arange(self.num_rows)
        return np.repeat(np.arange(len(self.problems)), np.concatenate(counts))

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of what the store holds, whatever its folder is called.

        It covers layers, positions, dtype, width and the checksum of every file. The same
        activations in shards of another size have another fingerprint.
        """
        manifest = self.manifest
        content = {
            "layers": self.layers,
            "positions": self.positions,
            "dtype": manifest["dtype"],
            "d_in": self.d_in,
            "problems": manifest["problems"]["sha256"],
            "shards": [
                [shard["shape"], shard["rows_per_problem"], shard["sha256"]]
                for shard in manifest["shards"]
            ],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def parse_position(self, text: str) -> Position:
        """Returns the position that a word of a command line names: "3", "-1", "last" or "all".

        "last", as `extract_activations.py` takes it, is position -1.

        Raises:
          ValueError: if the store has no such position; the error lists those there are.
        """
        for position in self.positions:
            if text == str(position):
                return position
        if text == LAST and -1 in self.positions:
            return -1
        raise self._unknown("position", text, self.positions)

    def select(self, layer: int, position: Position) -> Selection:
        """Selects every row of one (layer, position) slice.

        Raises:
          ValueError: if the store has no such layer or position; the error lists those there are.
        """
        self.check_slice(layer, position)
        return Selection(self, layer, position, np.arange(self.num_rows))

    def check_slice(self, layer: int, position: Position) -> None:
        """Refuses a (layer, position) that the store does not have.

        Raises:
          ValueError: if there is no such layer or position; the error lists those there are.
        """
        self._index("layer", layer, self.layers)
        self._index("position", position, self.positions)

    def read(self, layer: int, position: Position, rows: np.ndarray) -> np.ndarray:
        """Reads rows of a slice, in the order asked for: float32 `[len(rows), d_in]`.

        Raises:
          ValueError: if the store has no such layer, position or row.
        """
        layer_index = self._index("layer", layer, self.layers)
        position_index = self._index("position", position, self.positions)
        rows = self.check_rows(rows)
        activations = np.empty((len(rows), self.d_in), np.float32)
        # In the order in which they lie on disk.
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        starts = np.concatenate([[0], self._ends[:-1]])
        bounds = np.searchsorted(ascending, [*starts, self.num_rows])
        for shard in np.flatnonzero(np.diff(bounds)).tolist():
            in_shard = slice(bounds[shard], bounds[shard + 1])
            # A shard is mapped only while it is read, since every map holds a file descriptor and
            # counts as memory of the process.
            mapped = self._mapped(shard)
            stored = mapped[layer_index, position_index]
            local = ascending[in_shard] - starts[shard]
            if (local[-1] - local[0]) * stored[:1].nbytes > _SPARSE * len(local):
                cast(mmap.mmap, mapped.base).madvise(mmap.MADV_RANDOM)
            activations[order[in_shard]] = stored[local]
        return activations

    def check_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns row indices as int64 `[n]`.

        Raises:
          ValueError: if they are not integers on one axis, or one is not from 0 to
            `num_rows` - 1; negative ones do not count from the end.
        """
        rows = np.asarray(rows)
        if rows.ndim != 1:
            raise ValueError(f"rows have shape {rows.shape}; expected one axis")
        if rows.size and rows.dtype.kind not in "iu":
            raise ValueError(f"rows are {rows.dtype}; expected integers")
        outside = (rows < 0) | (rows >= self.num_rows)
        if outside.any():
            raise ValueError(
                f"row {rows[outside][0]} is not in the store at {self.path}, "
                f"which has rows 0 to {self.num_rows - 1}"
            )
        return rows.astype(np.int64, copy=False)

    def verify(self) -> None:
        """Reads every file and compares its sha256 with the manifest's.

        Raises:
          ValueError: if a file differs; the error names the first one.
        """
        for relative, entry in manifest_files(self.manifest):
            check_file(self.path / relative, entry, read=True)

    def _mapped(self, shard: int) -> np.memmap:
        """Maps a shard into memory, and checks its header the first time.

        One thread at a time: the parser that NumPy uses for it may fail in several at once
        (Python 3.11, "AST constructor recursion depth mismatch").
        """
        file, shape = self.path / shard_file(shard), self.manifest["shards"][shard]["shape"]
        dtype = self.manifest["dtype"]
        with self._parsing:
            if shard not in self._offsets:
                self._offsets[shard] = open_shard(file, shape, dtype).offset
        return np.memmap(file, dtype, "r", self._offsets[shard], tuple(shape))

    def _index(self, kind: str, value: Position, stored: tuple[Position, ...]) -> int:
        if value not in stored:
            raise self._unknown(kind, value, stored)
        return stored.index(value)

    def _unknown(self, kind: str, value: Position, stored: tuple[Position, ...]) -> ValueError:
        names = [f"-1 (or {LAST})" if name == -1 else str(name) for name in stored]
        return ValueError(
            f"{kind} {value!r} is not in the store at {self.path}; "
            f"it has {kind}s {', '.join(names)}"
        )


def open_shard(file: Path, shape: Sequence[int], dtype: str) -> np.memmap:
    """Maps a shard `[num_layers, num_positions, num_rows, d_in]` into memory.

    Raises:
      ValueError: if it has another shape or dtype.
    """
    array = cast(np.memmap, np.load(file, mmap_mode="r", allow_pickle=False))
    if list(array.shape) != list(shape) or array.dtype != dtype:
        raise ValueError(
            f"{file} holds {array.dtype}{list(array.shape)}; "
            f"the manifest says {dtype}{list(shape)}: extract the store again"
        )
    return array
