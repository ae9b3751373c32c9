"""Checkpoints of a sweep in training; the only file that knows Orbax.

A checkpoint folder holds `sweep.json`, which says what is trained on what, and one folder
of Orbax checkpoints for each group of members. Each checkpoint carries a digest of its
arrays, for Orbax notices a missing file but not every flipped bit.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from sae_jax.sweep.plan import Group, Plan

MANIFEST_NAME = "sweep.json"
NUM_KEPT = 2

State = TypeVar("State")


class Progress(NamedTuple):
    """How far a group has come.

    Attributes:
      epochs: number of finished epochs.
      state: a pytree of NumPy arrays.
      losses: of every step so far, `[num_steps, M]`.
    """

    epochs: int
    state: Any
    losses: np.ndarray


class GroupCheckpoints:
    """The last few checkpoints of one group, written in the background."""

    def __init__(self, folder: Path):
        self._folder = folder
        for epochs in self._epochs_on_disk():
            # Orbax reads all of these when it opens the folder, and trips over a bad one.
            try:
                ocp.metadata(folder / str(epochs))
            except Exception as error:
                self._discard(epochs, error)
        self._checkpointer = ocp.training.Checkpointer(
            folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(NUM_KEPT),
            cleanup_tmp_directories=True,
        )

    def save(self, epochs: int, state: Any, losses: np.ndarray, *, wait: bool = False) -> None:
        """Starts to write a checkpoint, unless the one before is still being written.

        Args:
          epochs: number of finished epochs.
          state: a pytree of arrays, copied before this returns.
          losses: of every step so far, `[num_steps, M]`.
          wait: whether to write in any case and return when it is on disk.
        """
        if self._checkpointer.is_saving_in_progress():
            if not wait:
                return
            self._checkpointer.wait()
        # Copied: training donates these buffers to its next step.
        arrays = jax.tree.map(lambda array: np.array(array, copy=True), _payload(state, losses))
        self._checkpointer.save_async(epochs, arrays, custom_metadata={"sha256": _digest(arrays)})
        if wait:
            self._checkpointer.wait()

    def restore(self, template: State, steps_per_epoch: int) -> Progress | None:
        """The newest checkpoint that is whole; damaged ones are removed with a warning.

        Args:
          template: a pytree of the shapes and dtypes of the state.
          steps_per_epoch: training steps in an epoch.

        Returns:
          The progress, or `None` if there is no checkpoint.
        """
        for epochs in sorted(self._epochs_on_disk(), reverse=True):
            try:
                return self._load(epochs, template, epochs * steps_per_epoch)
            # Whatever a damaged file makes Orbax, its codecs or the file system raise.
            except Exception as error:
                self._discard(epochs, error)
                self._checkpointer.reload()
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()

    def _discard(self, epochs: int, error: Exception) -> None:
        warnings.warn(
            f"the checkpoint after epoch {epochs} in {self._folder} is damaged"
            f" ({type(error).__name__}: {error}); using the one before",
            stacklevel=3,
        )
        shutil.rmtree(self._folder / str(epochs))

    def _epochs_on_disk(self) -> list[int]:
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]

    def _load(self, epochs: int, template: Any, num_steps: int) -> Progress:
        num_members = jax.tree.leaves(template)[0].shape[0]
        losses = jax.ShapeDtypeStruct((num_steps, num_members), np.float32)
        abstract = jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), _payload(template, losses)
        )
        arrays = self._checkpointer.load(epochs, abstract)
        stored = self._checkpointer.metadata(epochs).custom_metadata
        if not stored or stored.get("sha256") != _digest(arrays):
            raise ValueError("its arrays do not have the digest that they were saved with")
        leaves = [arrays["state"][name] for name in sorted(arrays["state"])]
        state = jax.tree.unflatten(jax.tree.structure(template), leaves)
        return Progress(epochs, state, arrays["losses"])


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
    """The checkpoint folder of one sweep.

    Attributes:
      plan: the groups that the checkpoints belong to: those of the run that made the
        folder, even if this device would group otherwise.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], plan: Plan):
        """Opens a folder, or makes it.

        Args:
          folder: where the checkpoints are or will be.
          identity: JSON values that must be equal for training to go on.
          plan: the groups to train if the folder is new.

        Raises:
          ValueError: if the folder holds something else, or checkpoints of another sweep
            or of other data; says in what they differ.
        """
        self._folder = Path(folder).resolve()
        path = self._folder / MANIFEST_NAME
        if path.exists():
            self.plan = self._checked_plan(path, identity)
            return
        if self._folder.exists() and any(self._folder.iterdir()):
            raise ValueError(f"{self._folder} is not empty and holds no {MANIFEST_NAME}")
        self.plan = plan
        self._folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "identity": identity,
            "groups": [dataclasses.asdict(group) for group in plan.groups],
            "versions": _versions(),
        }
        unfinished = path.with_suffix(".partial")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)

    def _checked_plan(self, path: Path, identity: Mapping[str, Any]) -> Plan:
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            there = _flat(manifest["identity"])
            groups = tuple(_group(values) for values in manifest["groups"])
            versions = dict(manifest["versions"])
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

    @contextmanager
    def group(self, i: int) -> Iterator[GroupCheckpoints]:
        """The checkpoints of group i; on leaving, what is being written is finished."""
        folder = self._folder / f"group_{i:05d}"
        folder.mkdir(exist_ok=True)
        checkpoints = GroupCheckpoints(folder)
        try:
            yield checkpoints
        finally:
            checkpoints.close()


def fingerprint(array: np.ndarray) -> str:
    """sha256 of an array's shape, dtype and values."""
    return _digest(array)


def _group(values: Mapping[str, Any]) -> Group:
    layer, position = values["data_slice"]
    lists = {"members": tuple(values["members"]), "data_slice": (layer, position)}
    return Group(**(dict(values) | lists))


def _versions() -> dict[str, str]:
    packages = ("sae-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {package: importlib.metadata.version(package) for package in packages}


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
