"""Makes activation stores so that no interruption costs more than one shard.

A manifest marked unfinished is written first and says what every shard will hold. Each file
appears under its name only when it is complete (temporary file, fsync, rename), so a shard
that is there is done, and a resumed run writes the missing ones. Checksums and the
finished mark come last.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.activations.arrays import as_float32
from sae_jax.activations.durable import TEMPORARY, write_text, write_whole
from sae_jax.activations.locks import LOCK_NAME, lock, lock_beside
from sae_jax.activations.manifest import (
    MANIFEST_NAME,
    PROBLEMS_NAME,
    SCHEMA_VERSION,
    SHARDS_NAME,
    STORAGE_DTYPES,
    file_entry,
    read_manifest,
    shard_file,
)
from sae_jax.activations.released import MAX_WINDOWS, RELEASED_NAME, read_released
from sae_jax.activations.selection import Position
from sae_jax.activations.store import ActivationStore, open_shard
from sae_jax.problems import Problem, to_jsonl

# Seconds between two looks whether a live store has room.
_INTERVAL = 0.1


@dataclass(frozen=True)
class StorePlan:
    """What a store will hold, known before the first activation is.

    Attributes:
      model: name of the model that the activations come from.
      layers: 0-based decoder layers.
      positions: continuous-thought or token positions, or `("all",)`.
      d_in: width of an activation.
      problems: every problem, in order.
      settings: how the activations are made; a resumed run must have the same.
      dtype: dtype of the shards, "float16" or "float32".
      shard_size: number of problems whose rows a shard holds.
      rows_per_problem: number of rows of each problem, where that is not one.
      window: number of shards in a window of a live store, which `LiveStore` reads; `None` for a
        store that is kept whole.

    Raises:
      ValueError: if the plan is of no layer, position or problem, names one twice or not by a
        plain value, or has another dtype, shard size or window.
    """

    model: str
    layers: Sequence[int]
    positions: Sequence[Position]
    d_in: int
    problems: Sequence[Problem]
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float16"
    shard_size: int = 512
    rows_per_problem: Sequence[int] | None = None
    window: int | None = None

    def __post_init__(self):
        if self.dtype not in STORAGE_DTYPES:
            raise ValueError(f"storage dtype is {self.dtype!r}; allowed: {STORAGE_DTYPES}")
        for layer in self.layers:
            if not (_is_integer(layer) and layer >= 0):
                raise ValueError(f"layers has {layer!r}; allowed: integers from 0")
        for position in self.positions:
            if not (_is_integer(position) or isinstance(position, str) and position):
                raise ValueError(
                    f"positions has {position!r}; allowed: integers and names such as 'all'"
                )
        for name in ("layers", "positions"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {tuple(values)} name one twice")
        for name in ("layers", "positions", "problems"):
            if not getattr(self, name):
                raise ValueError(f"a store needs at least one of its {name}")
        if self.shard_size < 1:
            raise ValueError(f"shard_size is {self.shard_size}; it must be at least 1")
        if self.window is not None and not (_is_integer(self.window) and self.window >= 1):
            raise ValueError(f"window is {self.window!r}; it must be at least 1 shard, or None")

    @property
    def num_shards(self) -> int:
        """Number of shards, the last of which may be smaller than the others."""
        return -(-len(self.problems) // self.shard_size)

    def shard_problems(self, shard: int) -> range:
        """Returns the indices of a shard's problems."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, len(self.problems)))

    def shard_shape(self, shard: int) -> tuple[int, int, int, int]:
        """Returns the shape of a shard, `[num_layers, num_positions, num_rows, d_in]`."""
        counts = self._shard_counts(shard)
        num_rows = len(self.shard_problems(shard)) if counts is None else sum(counts)
        return len(self.layers), len(self.positions), num_rows, self.d_in

    def manifest(self) -> dict[str, Any]:
        """Returns the manifest of the store before its first shard."""
        problems = to_jsonl(self.problems).encode()
        live = {} if self.window is None else {"window": int(self.window)}
        return live | {
            "schema_version": SCHEMA_VERSION,
            "finished": False,
            "model": self.model,
            "layers": [int(layer) for layer in self.layers],
            "positions": [p if isinstance(p, str) else int(p) for p in self.positions],
            "dtype": self.dtype,
            "d_in": self.d_in,
            "num_problems": len(self.problems),
            "shard_size": self.shard_size,
            "settings": dict(self.settings),
            "problems": {"bytes": len(problems), "sha256": hashlib.sha256(problems).hexdigest()},
            "shards": [
                {"shape": list(self.shard_shape(i)), "rows_per_problem": self._shard_counts(i)}
                for i in range(self.num_shards)
            ],
        }

    def _shard_counts(self, shard: int) -> list[int] | None:
        if self.rows_per_problem is None:
            return None
        return [int(self.rows_per_problem[i]) for i in self.shard_problems(shard)]


class StoreWriter:
    """Writes the shards of one plan; several processes may share the shards of one store."""

    def __init__(self, path: str | os.PathLike, plan: StorePlan):
        self.path = Path(path)
        self.plan = plan

    def prepare(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Makes the folder ready for shards; call it once, holding `lock`.

        Raises:
          ValueError: if the folder holds anything and neither `resume` nor `overwrite` is
            set, if `resume` finds a store of another plan, or if `overwrite` finds a folder
            that is no store.
        """
        if overwrite:
            _remove_store(self.path)
        manifest = self.plan.manifest()
        if (self.path / MANIFEST_NAME).exists():
            found = read_manifest(self.path)
            if not resume:
                state = "a finished store" if found["finished"] else "an unfinished store"
                raise ValueError(
                    f"{self.path} already holds {state}; "
                    "--resume continues it, --overwrite replaces it"
                )
            _check_same_plan(self.path, found, manifest)
        elif foreign := _entries(self.path):
            raise ValueError(
                f"{self.path} holds {foreign[0].name!r} and no store; it is left as is"
            )
        else:
            self._write_manifest(manifest)
        (self.path / SHARDS_NAME).mkdir(exist_ok=True)
        for leftover in self.path.rglob(f"*{TEMPORARY}"):
            # A process that trains on a live store may just be writing this one.
            if leftover.name != RELEASED_NAME + TEMPORARY:
                leftover.unlink()
        write_text(self.path / PROBLEMS_NAME, to_jsonl(self.plan.problems))

    def missing_shards(self) -> list[int]:
        """Returns the indices of the shards that are still to be written.

        Of a live store those that were trained on are not, but for the first window.
        """
        indices = [i for i in range(self.plan.num_shards) if not self.is_released(i)]
        return [i for i in indices if not (self.path / shard_file(i)).exists()]

    def is_released(self, shard: int) -> bool:
        """Whether a shard of a live store was trained on, so that nobody needs it any more."""
        window = self.plan.window or 0
        return window > 0 and window <= shard < read_released(self.path) * window

    def wait_for_room(self, shard: int) -> None:
        """Waits until a live store has room for a shard: until those before were trained on."""
        while self.plan.window and shard >= self.plan.window * (
            read_released(self.path) + MAX_WINDOWS
        ):
            time.sleep(_INTERVAL)

    def write_shard(self, shard: int, activations: np.ndarray) -> None:
        """Writes one shard, cast to the plan's dtype.

        Args:
          shard: index of the shard.
          activations: `[num_layers, num_positions, num_rows, d_in]`.

        Raises:
          ValueError: if the shape is not the plan's, the values are no floats, or one is not
            finite once cast.
          OSError: if it cannot be written, as when the disk is full; the store stays resumable.
        """
        if activations.shape != self.plan.shard_shape(shard):
            raise ValueError(
                f"shard {shard} has shape {activations.shape}; "
                f"the store's plan says {self.plan.shard_shape(shard)}"
            )
        with np.errstate(over="ignore"):
            values = as_float32(activations, f"shard {shard}")
            stored = np.ascontiguousarray(values, dtype=self.plan.dtype)
        for layer, position, row, column in np.argwhere(~np.isfinite(stored)):
            value = values[layer, position, row, column]
            cure = "store float32 instead" if np.isfinite(value) else "the model gave it"
            raise ValueError(
                f"activation {value} at layer {self.plan.layers[layer]}, position "
                f"{self.plan.positions[position]}, row {row} of shard {shard} is not finite in "
                f"{self.plan.dtype}: {cure}"
            )
        write_whole(self.path / shard_file(shard), lambda f: np.save(f, stored, allow_pickle=False))

    def finish(self) -> ActivationStore:
        """Adds every shard's checksum to the manifest, marks it finished and opens the store."""
        if read_manifest(self.path)["finished"]:
            return ActivationStore.open(self.path)
        if missing := self.missing_shards():
            raise ValueError(f"{self.path} still misses shards {missing}; run with --resume")
        manifest = self.plan.manifest()
        for index, shard in enumerate(manifest["shards"]):
            file = self.path / shard_file(index)
            open_shard(file, shard["shape"], self.plan.dtype)
            shard.update(file_entry(file))
        self._write_manifest({**manifest, "finished": True})
        return ActivationStore.open(self.path)

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        write_text(self.path / MANIFEST_NAME, json.dumps(manifest, indent=1) + "\n")


def write_store(
    path: str | os.PathLike,
    activations: Mapping[tuple[int, Position], np.ndarray],
    problems: Sequence[Problem],
    settings: Mapping[str, Any] | None = None,
    *,
    model: str = "imported",
    dtype: str = "float32",
    overwrite: bool = False,
) -> ActivationStore:
    """Writes arrays that are in memory as a store, one row a problem.

    Args:
      path: folder of the store.
      activations: `[len(problems), d_in]` for every pair of some layers and positions, of any
        float type that `as_float32` takes.
      problems: the problem of each row.
      settings: JSON values that tell where the activations come from.
      model: name of the model that they come from.
      dtype: dtype of the store, "float16" or "float32".
      overwrite: whether to replace a store that is there.

    Raises:
      ValueError: if a (layer, position) pair is missing, shapes differ, or an array is not of
        floats.
    """
    layers = sorted({layer for layer, _ in activations})
    # Names of positions come after numbers.
    positions = sorted({p for _, p in activations}, key=lambda p: (isinstance(p, str), p))
    pairs = [(layer, position) for layer in layers for position in positions]
    if missing := [pair for pair in pairs if pair not in activations]:
        raise ValueError(f"activations of (layer, position) {missing} are missing")
    expected = (len(problems), activations[pairs[0]].shape[-1])
    for pair in pairs:
        if activations[pair].shape != expected:
            raise ValueError(
                f"activations of (layer, position) {pair} have shape {activations[pair].shape}; "
                f"expected {expected}: a row for each of the {len(problems)} problems"
            )
        as_float32(activations[pair][:0], f"the array of {pair}")
    plan = StorePlan(model, layers, positions, expected[1], problems, settings or {}, dtype)
    writer = StoreWriter(path, plan)
    with lock(path):
        writer.prepare(overwrite=overwrite)
        for shard in writer.missing_shards():
            of_shard = plan.shard_problems(shard)
            rows = slice(of_shard.start, of_shard.stop)
            arrays = [as_float32(activations[pair][rows], f"the array of {pair}") for pair in pairs]
            writer.write_shard(shard, np.reshape(arrays, plan.shard_shape(shard)))
        return writer.finish()


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_same_plan(root: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    def comparable(manifest: dict[str, Any]) -> dict[str, Any]:
        shards = [[s["shape"], s["rows_per_problem"]] for s in manifest["shards"]]
        plan = manifest | manifest["settings"] | {"shards": shards}
        return {key: plan[key] for key in plan.keys() - {"finished", "settings"}}

    # JSON turns tuples into lists, as those on the disk are.
    old, new = comparable(found), comparable(json.loads(json.dumps(wanted)))
    for key in sorted(old.keys() | new.keys()):
        if key not in old:
            raise ValueError(
                f"{root} holds a run that did not record its {key}, so that it may be another's; "
                "a finished store can be read as it is, --overwrite replaces it"
            )
        if key not in new or old[key] != new[key]:
            raise ValueError(
                f"{root} holds a run with another {key}: {_shortened(old[key])} there, "
                f"{_shortened(new.get(key))} now; --resume needs the same settings, "
                "--overwrite replaces the store"
            )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _entries(root: Path) -> list[Path]:
    """Lists what the folder holds besides a lock and temporary files."""
    return sorted(p for p in root.iterdir() if p.name != LOCK_NAME and p.suffix != TEMPORARY)


def _remove_store(root: Path) -> None:
    if not (root / MANIFEST_NAME).exists():
        return
    read_manifest(root)
    with lock_beside(root / RELEASED_NAME):  # Not while a process trains on a live store.
        # The manifest goes last: until then the folder is known as a store that may be replaced.
        for shard in (root / SHARDS_NAME).glob("*.npy*"):
            shard.unlink()
        if (root / SHARDS_NAME).exists():
            (root / SHARDS_NAME).rmdir()
        (root / RELEASED_NAME).unlink(missing_ok=True)
        (root / PROBLEMS_NAME).unlink(missing_ok=True)
        (root / MANIFEST_NAME).unlink()
