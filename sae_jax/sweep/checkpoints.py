"""Checkpoints of a sweep in training; the only file that knows Orbax.

A checkpoint folder holds `sweep.json`, which says what is trained on what, and a folder for
each group of members with one Orbax checkpoint for each of some epochs. `checksums.json` in
it lists the size and sha256 of its files. They alone decide whether a checkpoint is damaged:
what Orbax raises on files that are as they were written is a fault of the moment.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import operator
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from sae_jax.activations.locks import LOCK_NAME, lock
from sae_jax.activations.manifest import file_entry
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.sweep.plan import Group, Plan
from sae_jax.sweep.result import renamed

MANIFEST_NAME = "sweep.json"
# A latent is a row of every encoder. Before manifests said so, encoders of groups with the dense
# kernel, and their moments, were written with a latent a column.
_LAYOUT = "latent_rows"
CHECKSUMS_NAME = "checksums.json"
NUM_KEPT = 2

# Largest share of a run's time that the making of checkpoints may take.
MAX_SHARE = 0.05
# Seconds that a checkpoint is taken to cost before one was made. So the first comes after ten
# seconds at the earliest, which is what starting and compiling again would cost.
FIRST_COST = 0.5

_UNFINISHED = ".unfinished_"
_REMOVED = ".removed_"

State = TypeVar("State")


class Progress(NamedTuple):
    """How far a group has come.

    Attributes:
      epochs: number of finished epochs.
      state: a pytree of arrays on the device.
      losses: of every step so far, `[num_steps, M]`.
    """

    epochs: int
    state: Any
    losses: np.ndarray


class Pace:
    """When a checkpoint is due: every so many epochs, or as often as time allows."""

    def __init__(self, every: int | None = None):
        """Starts the clock.

        Args:
          every: epochs from one checkpoint to the next; `None` for as many as keep the
            making of checkpoints below `MAX_SHARE` of the time.
        """
        self._every = every
        self._start = time.monotonic()
        self._spent, self._latest = 0.0, FIRST_COST

    def is_due(self, epochs: int) -> bool:
        """Whether to save after so many epochs."""
        if self._every is not None:
            return epochs % self._every == 0
        elapsed = time.monotonic() - self._start
        return self._spent + self._latest <= MAX_SHARE * elapsed

    def add(self, seconds: float) -> None:
        """Counts the time that a checkpoint took."""
        self._latest = seconds
        self._spent += seconds


class GroupCheckpoints:
    """The last few checkpoints of one group."""

    def __init__(self, folder: Path, pace: Pace | None = None, *, by_columns: bool = False):
        """Cleans the folder up.

        Args:
          folder: where the checkpoints are or will be.
          pace: when one is due.
          by_columns: whether encoders in checkpoints that are there have a latent a column.
        """
        self._folder = folder
        self._by_columns = by_columns
        self._pace = pace or Pace()
        for pattern in (f"{_UNFINISHED}*", f"{_REMOVED}*", "*.orbax-checkpoint-tmp*"):
            for leftover in folder.glob(pattern):
                shutil.rmtree(leftover)

    def is_due(self, epochs: int) -> bool:
        """Whether to save after so many epochs."""
        return self._pace.is_due(epochs)

    def save(self, epochs: int, state: Any, losses: np.ndarray) -> None:
        """Writes a checkpoint, which appears whole or not at all.

        Training waits meanwhile: a copy to write in the background, which takes its share of
        a CPU's cores too, would double the memory that a group needs there.

        Args:
          epochs: number of finished epochs.
          state: a pytree of arrays.
          losses: of every step so far, `[num_steps, M]`.

        Raises:
          OSError: if it cannot be written; those before are still there.
        """
        jax.block_until_ready(state)
        began = time.monotonic()
        unfinished = self._folder / f"{_UNFINISHED}{epochs}"
        context = ocp.Context()
        context.array.saving.use_compression = False  # Parameters hardly get smaller.
        context.memory.deepcopy_host_arrays = False  # Nobody changes them meanwhile.
        with context:
            ocp.save(unfinished, jax.tree.map(np.asarray, _payload(state, losses)))
        checksums = {
            str(path.relative_to(unfinished)): file_entry(path)
            for path in sorted(unfinished.rglob("*"))
            if path.is_file()
        }
        (unfinished / CHECKSUMS_NAME).write_text(json.dumps(checksums, indent=1), encoding="utf-8")
        for path in (*unfinished.rglob("*"), unfinished):
            _flush(path)
        unfinished.rename(self._folder / str(epochs))
        _flush(self._folder)
        for old in sorted(self._epochs_on_disk())[:-NUM_KEPT]:
            # Renamed first, so that one which is half removed does not look damaged.
            removed = (self._folder / str(old)).rename(self._folder / f"{_REMOVED}{old}")
            shutil.rmtree(removed)
        self._pace.add(time.monotonic() - began)

    def restore(self, template: State, steps_per_epoch: int) -> Progress | None:
        """The newest checkpoint that is whole; damaged ones are set aside with a warning.

        Args:
          template: a pytree of the shapes and dtypes of the state.
          steps_per_epoch: training steps in an epoch.

        Returns:
          The progress, or `None` if there is no checkpoint.

        Raises:
          ValueError: if a checkpoint holds other shapes or dtypes, which it names.
        """
        for epochs in sorted(self._epochs_on_disk(), reverse=True):
            try:
                return self._load(epochs, template, epochs * steps_per_epoch)
            except _DamagedError as damage:
                self._set_aside(epochs, damage)
        return None

    def _epochs_on_disk(self) -> list[int]:
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]

    def _set_aside(self, epochs: int, damage: Exception) -> None:
        place = self._folder / f"damaged_{epochs}"
        num_others = 0
        while place.exists():
            num_others += 1
            place = self._folder / f"damaged_{epochs}_{num_others}"
        (self._folder / str(epochs)).rename(place)
        warnings.warn(
            f"the checkpoint after epoch {epochs} in {self._folder} is damaged ({damage});"
            f" it is kept as {place}, and the one before is used",
            stacklevel=3,
        )

    def _load(self, epochs: int, template: Any, num_steps: int) -> Progress:
        folder = self._folder / str(epochs)
        has_checksums = _check_files(folder)
        if self._by_columns and not has_checksums:
            template = _encoders_swapped(template)
        num_members = jax.tree.leaves(template)[0].shape[0]
        losses = jax.ShapeDtypeStruct((num_steps, num_members), np.float32)
        with _doubt_noted(folder, has_checksums):
            metadata = ocp.metadata(folder)
        _check_settings(folder, metadata.metadata, template, losses)
        needed = _payload(template, losses)
        places, structure = jax.tree.flatten(needed)
        arrays = []
        for i, leaf in enumerate(places):
            # One at a time, each copied to where training may reuse its memory, so that all
            # that was read and all that is needed never lie side by side.
            wanted = [ocp.PLACEHOLDER] * len(places)
            wanted[i] = np.empty(leaf.shape, leaf.dtype)
            with _doubt_noted(folder, has_checksums):
                read = ocp.load(folder, jax.tree.unflatten(structure, wanted))
            arrays.append(jnp.array(jax.tree.leaves(read)[i]))
            del read
        saved = jax.tree.unflatten(structure, arrays)
        # Earlier versions kept a digest of the arrays instead of one of each file.
        if not has_checksums and (metadata.custom_metadata or {}).get("sha256") != _digest(saved):
            raise _DamagedError(f"{CHECKSUMS_NAME} is missing, or arrays are not as saved")
        leaves = [saved["state"][name] for name in sorted(saved["state"])]
        state = jax.tree.unflatten(jax.tree.structure(template), leaves)
        if self._by_columns and not has_checksums:
            state = _encoders_swapped(state)
        return Progress(epochs, state, np.asarray(saved["losses"]))


def _encoders_swapped(state: Any) -> Any:
    """A state, or its shapes, with the last two axes of encoders and their moments swapped."""

    def swapped(path: Any, leaf: Any) -> Any:
        if not (path and getattr(path[-1], "key", None) == "w_enc_t"):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            *first, rows, columns = leaf.shape
            return jax.ShapeDtypeStruct((*first, columns, rows), leaf.dtype)
        return jnp.swapaxes(leaf, -1, -2)

    return jax.tree_util.tree_map_with_path(swapped, state)


class _DamagedError(Exception):
    """Files of a checkpoint are not as they were written."""


def _check_files(folder: Path) -> bool:
    """Compares the files of a checkpoint with their checksums.

    Returns:
      Whether there are any: versions before they were introduced wrote none.

    Raises:
      _DamagedError: if a file is missing or another than was written.
      OSError: if a file cannot be read just now.
    """
    try:
        checksums = json.loads((folder / CHECKSUMS_NAME).read_bytes())
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise _DamagedError(f"{CHECKSUMS_NAME} is no JSON: {error}") from error
    if not isinstance(checksums, dict):
        raise _DamagedError(f"{CHECKSUMS_NAME} holds no checksums")
    for name, written in checksums.items():
        try:
            found = file_entry(folder / name)
        except FileNotFoundError as error:
            raise _DamagedError(f"{name} is missing") from error
        if found != written:
            raise _DamagedError(f"{name} is {found}, was written as {written}")
    return True


@contextmanager
def _doubt_noted(folder: Path, has_checksums: bool) -> Iterator[None]:
    """Tells of an error in reading that damage may be the cause where no checksum denies it."""
    try:
        yield
    except Exception as error:
        if not has_checksums:
            error.add_note(
                f"{folder} has no {CHECKSUMS_NAME}, by which to see whether it is damaged; if it"
                " is, move it elsewhere, and training goes on from the checkpoint before"
            )
        raise


def _check_settings(folder: Path, stored: Any, template: Any, losses: Any) -> None:
    """Refuses arrays of other shapes or dtypes than are needed, before any is read."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(template)]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    needed = dict(zip(names, jax.tree.leaves(template), strict=True)) | {"losses": losses}
    found = {
        names[int(name)] if int(name) < len(names) else name: leaf
        for name, leaf in stored["state"].items()
    } | {"losses": stored["losses"]}
    different = [
        f"{name} is {_shape_and_dtype(found.get(name))}, needed is"
        f" {_shape_and_dtype(needed.get(name))}"
        for name in needed | found
        if _shape_and_dtype(found.get(name)) != _shape_and_dtype(needed.get(name))
    ]
    if different:
        raise ValueError(
            f"{folder} was saved under other settings, such as JAX_ENABLE_X64: "
            + "; ".join(different[:10])
        )


def _shape_and_dtype(array: Any) -> str:
    if array is None:
        return "absent"
    return f"{np.dtype(array.dtype).name}[{', '.join(str(size) for size in array.shape)}]"


def _flush(path: Path) -> None:
    """Makes a file, or a folder's list of files, outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _payload(state: Any, losses: Any) -> dict[str, Any]:
    """Plain dicts under sorted names, which do not depend on anyone's classes."""
    leaves = jax.tree.leaves(state)
    return {"state": {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}, "losses": losses}


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


class SweepCheckpoints:
    """The checkpoint folder of one sweep, opened by `SweepCheckpoints.open`.

    Attributes:
      plan: the groups that the checkpoints belong to: those of the run that made the
        folder, even if this device would group otherwise.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], plan: Plan, pace: Pace):
        self._folder = folder
        self._pace = pace
        self._layout: str | None = _LAYOUT
        path = self._folder / MANIFEST_NAME
        if path.exists():
            self.plan = self._checked_plan(path, identity)
            return
        unfinished = path.with_suffix(".partial")
        if {found.name for found in self._folder.iterdir()} - {LOCK_NAME, unfinished.name}:
            raise ValueError(f"{self._folder} is not empty and holds no {MANIFEST_NAME}")
        self.plan = plan
        manifest = {
            "identity": identity,
            "groups": [dataclasses.asdict(group) for group in plan.groups],
            "versions": _versions(),
            "layout": _LAYOUT,
        }
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: str | Path,
        identity: Mapping[str, Any],
        plan: Plan,
        every: int | None = None,
    ) -> Iterator[Self]:
        """Opens a folder, or makes it, and holds it against other processes.

        Args:
          folder: where the checkpoints are or will be.
          identity: JSON values that must be equal for training to go on.
          plan: the groups to train if the folder is new.
          every: epochs from one checkpoint to the next; `None` for as many as keep the
            making of checkpoints below `MAX_SHARE` of the time.

        Raises:
          ValueError: if another process has opened it; if it holds something else, or
            checkpoints of another sweep or of other data; says in what they differ.
        """
        pace = Pace(_checked_every(every))
        with lock(folder):
            yield cls(Path(folder).resolve(), identity, plan, pace)

    def _checked_plan(self, path: Path, identity: Mapping[str, Any]) -> Plan:
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            there = _flat(_upgraded(manifest["identity"]))
            groups = tuple(_group(values) for values in manifest["groups"])
            versions = dict(manifest["versions"])
            self._layout = manifest.get("layout")
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error
        here = _flat(json.loads(json.dumps(identity)))
        different = [name for name in here | there if here.get(name) != there.get(name)]
        if different:
            details = "; ".join(
                f"{name} was {there.get(name, 'absent')}, is {here.get(name, 'absent')}"
                for name in different[:10]
            )
            raise ValueError(f"{self._folder} holds checkpoints of another sweep: {details}")
        if versions != _versions():
            warnings.warn(
                f"the checkpoints in {self._folder} were made with {versions}, this is"
                f" {_versions()}; results may differ in the last digits",
                stacklevel=3,
            )
        return Plan(groups)

    def group(self, i: int) -> GroupCheckpoints:
        """The checkpoints of group i."""
        folder = self._folder / f"group_{i:05d}"
        folder.mkdir(exist_ok=True)
        by_columns = self._layout != _LAYOUT and self.plan.groups[i].kernel == "dense"
        return GroupCheckpoints(folder, self._pace, by_columns=by_columns)


def _checked_every(every: int | None) -> int | None:
    try:
        if every is None or operator.index(every) > 0:
            return every
    except TypeError:
        pass
    raise ValueError(f"checkpoint_every is {every!r}; allowed is None, or 1 or more epochs")


def fingerprint(array: np.ndarray) -> str:
    """sha256 of an array's shape, dtype and values."""
    return _digest(array)


def _group(values: Mapping[str, Any]) -> Group:
    layer, position = values["data_slice"]
    lists = {"members": tuple(values["members"]), "data_slice": (layer, position)}
    return Group(**(renamed(values) | lists))


def _upgraded(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a sweep as this version would write it: with all of today's fields."""
    return {
        **identity,
        "configs": [dataclasses.asdict(SAEConfig(**config)) for config in identity["configs"]],
        "train_config": dataclasses.asdict(TrainConfig(**renamed(identity["train_config"]))),
    }


def _versions() -> dict[str, str]:
    packages = ("sae-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # As where this library's source is part of another's.


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON values by dotted names."""
    if isinstance(values, Mapping):
        items = [(str(name), value) for name, value in values.items()]
    elif isinstance(values, list):
        items = [(str(i), value) for i, value in enumerate(values)]
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in items:
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat
