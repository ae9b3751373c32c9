"""Checkpoints of a sweep in training; the only file that knows Orbax.

A checkpoint folder holds `sweep.json`, which says what is trained on what, and a folder for
each group of members with the last few Orbax checkpoints, each named by the number of parts of
epochs that were finished. Of several processes the first writes, and all read.
"""

import dataclasses
import importlib.metadata
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from sae_jax.activations.durable import TEMPORARY, flush, write_text
from sae_jax.activations.locks import LOCK_NAME, lock
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.sweep.checksums import (
    CHECKSUMS_NAME,
    DamagedError,
    check_files,
    fingerprint,
    write_checksums,
)
from sae_jax.sweep.pace import Pace
from sae_jax.sweep.plan import Group, Plan
from sae_jax.sweep.processes import check_sees, enter, gathered, of_main
from sae_jax.sweep.result import renamed

MANIFEST_NAME = "sweep.json"
# A latent is a row of every encoder. Before manifests said so, encoders of groups with the dense
# kernel, and their moments, were written with a latent a column.
_LAYOUT = "latent_rows"
NUM_KEPT = 2

_UNFINISHED = ".unfinished_"
_REMOVED = ".removed_"

State = TypeVar("State")


class GroupCheckpoints:
    """The last few checkpoints of one group."""

    def __init__(self, folder: Path, pace: Pace, *, by_columns: bool = False):
        """Removes what a killed process left half done.

        Args:
          folder: the existing folder of the group's checkpoints.
          pace: says when a checkpoint is due.
          by_columns: whether encoders in checkpoints of earlier versions have a latent a column.
        """
        self._folder = folder
        self._pace = pace
        self._by_columns = by_columns
        of_main(self._remove_leftovers)

    def is_due(self, parts: int, per_epoch: int) -> bool:
        """Whether to save after so many finished parts of epochs, of so many an epoch."""
        return of_main(lambda: self._pace.is_due(parts, per_epoch))

    def save(self, parts: int, state: Any, losses: np.ndarray) -> None:
        """Writes a checkpoint, which appears whole or not at all.

        Training waits meanwhile. Writing in the background would need a copy, which doubles the
        memory of a group on a CPU, and would take a share of the CPU's cores.

        Args:
          parts: number of finished parts of epochs: of whole epochs where they have one part.
          state: a pytree of arrays with leading axis M, or longer: the rest are copies that fill
            up devices, and are not written.
          losses: losses of every step so far, `[num_steps, M]`.

        Raises:
          OSError: if it cannot be written; the checkpoints before are still there.
        """
        jax.block_until_ready(state)
        began = time.monotonic()
        unfinished = self._folder / f"{_UNFINISHED}{parts}"
        context = ocp.Context()
        context.array.saving.use_compression = False  # Parameters hardly get smaller.
        context.memory.deepcopy_host_arrays = False  # Nobody changes them meanwhile.
        with context:
            leaves = [gathered(leaf)[: losses.shape[1]] for leaf in jax.tree.leaves(state)]
            ocp.save(unfinished, _payload([losses, *leaves]))
        of_main(lambda: self._finish(unfinished, parts))
        self._pace.add(time.monotonic() - began)

    def restore(
        self,
        template: State,
        first_step: Callable[[int], int],
        place: Callable[[np.ndarray], jax.Array] = jnp.array,
    ) -> tuple[int, State, np.ndarray] | None:
        """Reads the newest checkpoint that is whole; sets damaged ones aside with a warning.

        Args:
          template: a pytree of the shapes and dtypes of the state.
          first_step: gives the number of training steps before a part.
          place: copies an array to where training may reuse its memory.

        Returns:
          The number of finished parts, the state, and the losses of every step
          so far, `[num_steps, M]`; or `None` if there is no checkpoint.

        Raises:
          ValueError: if a checkpoint holds other shapes or dtypes, which it names.
        """
        for parts in reversed(of_main(self._parts_on_disk)):
            try:
                return parts, *self._load(parts, template, first_step(parts), place)
            except DamagedError as damage:
                of_main(partial(self._set_aside, parts, damage))
        return None

    def _remove_leftovers(self) -> None:
        for pattern in (f"{_UNFINISHED}*", f"{_REMOVED}*", "*.orbax-checkpoint-tmp*"):
            for leftover in self._folder.glob(pattern):
                shutil.rmtree(leftover)

    def _finish(self, unfinished: Path, parts: int) -> None:
        """Makes a checkpoint that is written the newest, and removes the oldest."""
        write_checksums(unfinished)
        for path in (*unfinished.rglob("*"), unfinished):
            flush(path)
        unfinished.rename(self._folder / str(parts))
        flush(self._folder)
        for old in self._parts_on_disk()[:-NUM_KEPT]:
            # Renamed first, so that a half removed one does not look damaged.
            removed = (self._folder / str(old)).rename(self._folder / f"{_REMOVED}{old}")
            shutil.rmtree(removed)

    def _parts_on_disk(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def _set_aside(self, parts: int, damage: Exception) -> None:
        place = self._folder / f"damaged_{parts}"
        num_others = 0
        while place.exists():
            num_others += 1
            place = self._folder / f"damaged_{parts}_{num_others}"
        (self._folder / str(parts)).rename(place)
        warnings.warn(
            f"checkpoint {parts} in {self._folder} is damaged ({damage});"
            f" it is kept as {place}, and the one before is used",
            stacklevel=4,
        )

    def _load(
        self,
        parts: int,
        template: State,
        num_steps: int,
        place: Callable[[np.ndarray], jax.Array],
    ) -> tuple[State, np.ndarray]:
        folder = self._folder / str(parts)
        has_checksums, damage = of_main(lambda: _looked_over(folder))
        if damage:
            raise DamagedError(damage)
        by_columns = self._by_columns and not has_checksums
        if by_columns:
            template = jax.eval_shape(_encoders_swapped, template)
        leaves, structure = jax.tree.flatten(template)
        losses = jax.ShapeDtypeStruct((num_steps, leaves[0].shape[0]), np.float32)
        try:
            metadata = ocp.metadata(folder)
            _check_settings(folder, metadata.metadata, template, losses)
            read = _read(folder, [losses, *leaves])
            # One by one, so that all that was read and all that is needed never lie side by side.
            losses_read, arrays = np.array(next(read)), [place(array) for array in read]
        except Exception as error:
            if not has_checksums:
                error.add_note(
                    f"{folder} has no {CHECKSUMS_NAME}, by which to see whether it is damaged; if"
                    " it is, move it elsewhere, and training goes on from the checkpoint before"
                )
            raise
        # Earlier versions kept a digest of the arrays instead of one of each file.
        digest = (metadata.custom_metadata or {}).get("sha256")
        if not has_checksums:
            own = [array[: len(leaf)] for array, leaf in zip(arrays, leaves, strict=True)]
            if digest != fingerprint([losses_read, *gathered(own)]):
                raise DamagedError(f"{CHECKSUMS_NAME} is missing, or arrays are not as saved")
        state = jax.tree.unflatten(structure, arrays)
        return _encoders_swapped(state) if by_columns else state, losses_read


def _looked_over(folder: Path) -> tuple[bool, str | None]:
    """Whether a checkpoint has checksums, and what is wrong with its files, if anything is."""
    try:
        return check_files(folder), None
    except DamagedError as damage:
        return True, str(damage)


def _payload(arrays: Sequence[Any]) -> dict[str, Any]:
    """Losses and leaves of a state under sorted names, which do not depend on anyone's classes."""
    losses, *leaves = arrays
    return {"losses": losses, "state": {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}}


def _read(folder: Path, needed: Sequence[jax.ShapeDtypeStruct]) -> Iterator[np.ndarray]:
    """The arrays of a checkpoint in the order of `_payload`, each in memory until the next."""
    for i, leaf in enumerate(needed):
        wanted: list[Any] = [ocp.PLACEHOLDER] * len(needed)
        wanted[i] = np.empty(leaf.shape, leaf.dtype)
        yield jax.tree.leaves(ocp.load(folder, _payload(wanted)))[i]


def _encoders_swapped(state: State) -> State:
    """A state with the last two axes of encoders and their moments swapped."""

    def swapped(path: Any, leaf: jax.Array) -> jax.Array:
        is_encoder = path and getattr(path[-1], "key", None) == "w_enc_t"
        return jnp.swapaxes(leaf, -1, -2) if is_encoder else leaf

    return jax.tree_util.tree_map_with_path(swapped, state)


def _check_settings(folder: Path, stored: Any, template: Any, losses: Any) -> None:
    """Refuses arrays of other shapes or dtypes than are needed, before any is read."""
    needed = _by_name(template)
    names = list(needed)
    found = {
        names[int(i)] if int(i) < len(names) else i: leaf for i, leaf in stored["state"].items()
    }
    differences = _differences(
        _described(found | {"losses": stored["losses"]}),
        _described(needed | {"losses": losses}),
        "{} is {}, needed is {}",
    )
    if differences:
        raise ValueError(
            f"{folder} was saved under other settings, such as JAX_ENABLE_X64: {differences}"
        )


def _described(arrays: Mapping[str, Any]) -> dict[str, str]:
    """The dtype and shape of each array, as `float32[2, 3]`."""
    return {
        name: f"{np.dtype(array.dtype).name}{list(array.shape)}" for name, array in arrays.items()
    }


def _by_name(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of a pytree by their dotted paths, such as `configs.0.k`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _differences(there: dict[str, Any], here: dict[str, Any], words: str) -> str:
    """Names the first ten entries that differ; empty if none does."""
    different = [
        words.format(name, there.get(name, "absent"), here.get(name, "absent"))
        for name in here | there
        if here.get(name) != there.get(name)
    ]
    return "; ".join(different[:10])


class SweepCheckpoints:
    """The checkpoint folder of one sweep, opened by `SweepCheckpoints.open`.

    Attributes:
      plan: the groups that the checkpoints belong to: those of the run that made the
        folder, even if this device would group otherwise.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], plan: Plan, pace: Pace):
        self._folder = folder
        self._pace = pace
        path = folder / MANIFEST_NAME
        of_main(lambda: None if path.exists() else _write_manifest(path, identity, plan))
        check_sees(path)
        self.plan, self._layout = _checked_manifest(path, identity)

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
          folder: the folder of the sweep's checkpoints.
          identity: JSON values that must be equal for training to go on.
          plan: the groups to train if the folder is new.
          every: number of epochs from one checkpoint to the next, as `Pace` takes it.

        Raises:
          ValueError: if `every` is not allowed; if another job has opened the folder; if it
            holds something else, or checkpoints of another sweep or of other data; the error
            says in what they differ; or if a process does not see what process 0 writes there.
        """
        pace = Pace(every)
        with ExitStack() as stack:
            enter(stack, lock(folder))
            yield cls(Path(folder).resolve(), identity, plan, pace)

    def group(self, i: int) -> GroupCheckpoints:
        """The checkpoints of group i."""
        folder = self._folder / f"group_{i:05d}"
        of_main(partial(folder.mkdir, exist_ok=True))
        by_columns = self._layout != _LAYOUT and self.plan.groups[i].kernel == "dense"
        return GroupCheckpoints(folder, self._pace, by_columns=by_columns)


def _write_manifest(path: Path, identity: Mapping[str, Any], plan: Plan) -> None:
    ours = {LOCK_NAME, path.name + TEMPORARY}
    if {found.name for found in path.parent.iterdir()} - ours:
        raise ValueError(f"{path.parent} is not empty and holds no {MANIFEST_NAME}")
    manifest = {
        "identity": identity,
        "groups": [dataclasses.asdict(group) for group in plan.groups],
        "versions": _versions(),
        "layout": _LAYOUT,
    }
    write_text(path, json.dumps(manifest, indent=1))


def _checked_manifest(path: Path, identity: Mapping[str, Any]) -> tuple[Plan, str | None]:
    """The plan and the layout of a checkpoint folder, if it is of the sweep of this identity."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        there = _flat(_upgraded(manifest["identity"]))
        groups = tuple(_group(values) for values in manifest["groups"])
        versions, layout = dict(manifest["versions"]), manifest.get("layout")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if differences := _differences(there, _flat(identity), "{} was {}, is {}"):
        raise ValueError(f"{path.parent} holds checkpoints of another sweep: {differences}")
    # Those of an earlier sae-jax name fewer packages.
    now = {package: _versions().get(package) for package in versions}
    if versions != now:
        warnings.warn(
            f"the checkpoints in {path.parent} were made with {versions}, this is"
            f" {now}; results may differ in the last digits",
            stacklevel=3,
        )
    return Plan(groups), layout


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values of an identity by their dotted paths."""
    values = json.loads(json.dumps(identity))
    return _by_name(values, lambda value: value is None)  # JAX takes None for an empty tree.


def _group(values: Mapping[str, Any]) -> Group:
    lists = {name: tuple(values[name]) for name in ("members", "data_slice")}
    return Group(**(renamed(values) | lists))


def _upgraded(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a sweep as this version would write it: with all of today's fields."""
    return {
        **identity,
        "configs": [dataclasses.asdict(SAEConfig(**config)) for config in identity["configs"]],
        "train_config": dataclasses.asdict(TrainConfig(**renamed(identity["train_config"]))),
    }


def _versions() -> dict[str, str]:
    packages = ("sae-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = dict.fromkeys(packages, "unknown")
    for package in packages:
        # Unknown where this library's source is part of another's.
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
