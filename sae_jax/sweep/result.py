"""What a sweep leaves: parameters, metrics and loss history of each member."""

import dataclasses
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sae_jax.activations.locks import LOCK_NAME, lock
from sae_jax.architectures.base import PARAM_NAMES, SAE
from sae_jax.architectures.registry import architecture_of
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.formats import native
from sae_jax.sweep.provenance import as_saved

MANIFEST_NAME = "sweep.json"
HISTORY_NAME = "history.safetensors"
# A sweep that replaces another takes the name that the other does not have, so that both
# are whole until the manifest names the new one.
MEMBERS_NAMES = ("members", "members.2")

_FORMAT = "sae_jax_sweep"
_FORMAT_VERSION = 2
# Version 1 kept the histories of all members in one file.
_ARRAYS_NAME_1 = "arrays.npz"
_PARTIAL_NAME = ".members.partial"

# What reading raises, of files that are missing, cut off, or hold something else.
_DAMAGES = (
    AttributeError,
    EOFError,
    FileNotFoundError,
    KeyError,
    SafetensorError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One trained SAE with its scores.

    Attributes:
      config: what it was trained with.
      params: `w_enc [D, F]`, `b_enc [F]`, `w_dec [F, D]`, `b_dec [D]`, of its true size, and what
        else its architecture has. Those of a sweep on disk are read when they are asked for.
      metrics: scalars by name, on the validation samples; without meaning if it diverged.
      firing_rate: `[F]`, on the validation samples.
      losses: of every training step, each before its update, `[num_steps]`.
      diverged_at: the first step whose loss was not finite, from 0, or the number of steps if
        the last of them left parameters whose reconstructions are not; `None` if neither
        happened.
    """

    config: SAEConfig
    params: Mapping[str, np.ndarray]
    metrics: Mapping[str, float]
    firing_rate: np.ndarray
    losses: np.ndarray
    diverged_at: int | None = None

    def sae(self) -> SAE:
        """The trained SAE, of the class that the config's architecture names."""
        return architecture_of(self.config).from_params(self.params, self.config)

    def row(self) -> dict[str, Any]:
        """Config, metrics and divergence in one flat dict; no metrics of one that diverged."""
        scores: Mapping[str, float | None] = self.metrics
        if self.diverged_at is not None:
            scores = dict.fromkeys(scores)
        return dataclasses.asdict(self.config) | dict(scores) | {"diverged_at": self.diverged_at}


def divergence(losses: np.ndarray, ended_finite: bool) -> int | None:
    """`Member.diverged_at` of a history, and of whether all was finite after the last step."""
    steps = np.flatnonzero(~np.isfinite(losses))
    if steps.size:
        return int(steps[0])
    return None if ended_finite else len(losses)


@dataclasses.dataclass(frozen=True, eq=False)
class SweepResult:
    """Trained members in the order of their configs.

    Attributes:
      members: one for each config.
      train_config: what they shared.
      data: where the activations came from, JSON values; empty where nobody said.
    """

    members: Sequence[Member]
    train_config: TrainConfig
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_data(self.data)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def configs(self) -> list[SAEConfig]:
        """The members' configs."""
        return [member.config for member in self.members]

    def sae(self, i: int) -> SAE:
        """The trained SAE of member i."""
        return self.members[i].sae()

    def table(self, format: Literal["dicts", "pandas"] = "dicts") -> Any:
        """One row a member: its config, every metric, and `diverged_at`.

        Metrics of a member that diverged are `None`; one that the data leave undefined, as
        `fvu` where all samples are equal, is NaN.

        Args:
          format: `"dicts"` for a list of flat dicts, `"pandas"` for a `DataFrame`, which
            needs pandas installed.

        Raises:
          ValueError: if the format is another.
        """
        rows = [member.row() for member in self.members]
        if format == "dicts":
            return rows
        if format == "pandas":
            import pandas

            return pandas.DataFrame(rows)
        raise ValueError(f"format is {format!r}; allowed are 'dicts' and 'pandas'")

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes everything to a folder; see `writing_sweep`.

        Raises:
          ValueError: as `writing_sweep` does.
        """
        with writing_sweep(folder, overwrite=overwrite) as writer:
            for i, member in enumerate(self.members):
                writer.write(i, member)
            writer.finish(self.train_config, self.data)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote, all but the parameters, which members read when asked.

        Raises:
          ValueError: if there is no sweep in the folder, or a part of it is missing or
            damaged.
        """
        folder = Path(folder)
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise ValueError(f"no sweep in {folder}: {MANIFEST_NAME} is missing")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except _DAMAGES as error:
            raise ValueError(f"the sweep in {folder} is damaged: {error!r}") from error
        if isinstance(manifest, dict) and {"identity", "groups"} <= manifest.keys():
            raise ValueError(
                f"{folder} holds checkpoints of a sweep, and no finished one: train_sweep with"
                " checkpoint_dir naming it goes on from there"
            )
        try:
            if manifest["format"] != _FORMAT or manifest["version"] not in (1, _FORMAT_VERSION):
                raise ValueError(
                    f"{path} is {manifest['format']!r} of version {manifest['version']!r}; this"
                    f" reads {_FORMAT!r} up to {_FORMAT_VERSION}"
                )
            read = _members_of_version_1 if manifest["version"] == 1 else _members
            train_config = TrainConfig(**renamed(manifest["train_config"]))
            return cls(list(read(folder, manifest)), train_config, dict(manifest["data"]))
        except _DAMAGES as error:
            raise ValueError(f"the sweep in {folder} is damaged: {error!r}") from error


class SweepWriter:
    """Writes the members of one sweep, in any order, as they are trained."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._partial = folder / _PARTIAL_NAME
        self._entries: dict[int, dict[str, Any]] = {}

    def write(self, i: int, member: Member) -> None:
        """Writes member i, which nothing needs to keep in memory any longer."""
        folder = self._partial / f"{i:05d}"
        native.save(member.sae(), folder, _jsonable(member.row()), config=member.config)
        history = {"losses": member.losses, "firing_rate": member.firing_rate}
        save_file(
            {name: np.ascontiguousarray(array) for name, array in history.items()},
            folder / HISTORY_NAME,
        )
        self._entries[i] = {
            "config": dataclasses.asdict(member.config),
            "metrics": _jsonable(member.metrics),
            "diverged_at": member.diverged_at,
        }

    def finish(self, train_config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Makes the written members the folder's sweep, in the place of what was there."""
        path = self._folder / MANIFEST_NAME
        before = _members_name(json.loads(path.read_text("utf-8"))) if path.exists() else None
        name = next(name for name in MEMBERS_NAMES if name != before)
        shutil.rmtree(self._folder / name, ignore_errors=True)  # Of an overwriting cut short.
        self._partial.rename(self._folder / name)
        manifest = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "train_config": dataclasses.asdict(train_config),
            "data": as_saved(data, self._folder),
            "folder": name,
            "members": [self._entries[i] for i in range(len(self._entries))],
        }
        unfinished = self._folder / f".{MANIFEST_NAME}.partial"
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        if before is not None:
            shutil.rmtree(self._folder / before)
        (self._folder / _ARRAYS_NAME_1).unlink(missing_ok=True)


@contextmanager
def writing_sweep(folder: str | Path, *, overwrite: bool = False) -> Iterator[SweepWriter]:
    """A writer for a folder, which at every moment holds the old sweep or the whole new one.

    `members/00000` and so on each hold one SAE that `sae_jax.formats.native.load` reads
    without the rest; in a sweep that replaced another the folder may be `members.2`, as
    the manifest says. Files that others put there stay.

    Raises:
      ValueError: if the folder holds something already and `overwrite` is not set, or it
        holds something else than a sweep, or another process is writing to it.
    """
    folder = Path(folder)
    check_free(folder, overwrite)
    is_new = not folder.exists()
    try:
        with lock(folder):
            check_free(folder, overwrite)  # Another process may have been faster.
            partial = folder / _PARTIAL_NAME
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                yield SweepWriter(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _members(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Member]:
    for i, entry in enumerate(manifest["members"]):
        member_folder = folder / _members_name(manifest) / f"{i:05d}"
        config, params = _config_and_params(member_folder, entry)
        history = load_file(member_folder / HISTORY_NAME)
        losses, firing_rate = history["losses"], history["firing_rate"]
        _check_history(i, config, losses, firing_rate)
        yield Member(
            config, params, _numbers(entry["metrics"]), firing_rate, losses, entry["diverged_at"]
        )


def _members_of_version_1(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Member]:
    with np.load(folder / _ARRAYS_NAME_1, allow_pickle=False) as arrays:
        for i, entry in enumerate(manifest["members"]):
            config, params = _config_and_params(folder / MEMBERS_NAMES[0] / f"{i:05d}", entry)
            losses, firing_rate = arrays[f"losses_{i:05d}"], arrays[f"firing_rate_{i:05d}"]
            _check_history(i, config, losses, firing_rate)
            metrics = _numbers(entry["metrics"])
            diverged_at = divergence(losses, ended_finite=bool(np.isfinite(metrics["mse"])))
            yield Member(config, params, metrics, firing_rate, losses, diverged_at)


_KERNELS_1 = {"auto": "auto", "dense": "dense", "compact": "firing_rows", "sparse": "selected_rows"}


def renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A training config's or a group's fields, under today's names for what were paths."""
    fields = dict(fields)
    if "path" in fields:
        fields["kernel"] = _KERNELS_1[fields.pop("path")]
    if "one_by_one" in fields:
        fields["sequential"] = fields.pop("one_by_one")
    return fields


def _members_name(manifest: Mapping[str, Any]) -> str:
    name = manifest["folder"] if manifest["version"] > 1 else MEMBERS_NAMES[0]
    if name not in MEMBERS_NAMES:
        raise ValueError(f"folder is {name!r}; allowed are {MEMBERS_NAMES}")
    return name


def _config_and_params(folder: Path, entry: Mapping[str, Any]) -> tuple[SAEConfig, "_StoredParams"]:
    config = SAEConfig(**entry["config"])
    native.check_holds(folder, config)
    params = _StoredParams(folder / native.WEIGHTS)
    if params.shape("w_dec")[0] != config.d_sae:
        raise ValueError(f"{folder} has w_dec {params.shape('w_dec')}; the sweep says {config}")
    return config, params


class _StoredParams(Mapping[str, np.ndarray]):
    """The parameters in a safetensors file, read from it whenever one is asked for."""

    def __init__(self, path: Path):
        self._path = path
        with safe_open(path, framework="numpy") as file:
            self._names = sorted(file.keys())
        if missing := sorted({*PARAM_NAMES} - {*self._names}):
            raise ValueError(f"{path} lacks {missing}; it holds {self._names}")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, framework="numpy") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._path, framework="numpy") as file:
            return tuple(file.get_slice(name).get_shape())


def _check_history(i: int, config: SAEConfig, losses: np.ndarray, firing_rate: np.ndarray) -> None:
    if losses.ndim != 1 or firing_rate.shape != (config.d_sae,):
        raise ValueError(
            f"member {i} has losses {losses.shape} and firing rates {firing_rate.shape};"
            f" expected [num_steps] and ({config.d_sae},)"
        )


def check_free(folder: Path, overwrite: bool, marker: str = MANIFEST_NAME) -> None:
    """Refuses a folder that holds something, unless it may be replaced.

    Only a folder with the file `marker` in it may be: it was written by what replaces it.

    Raises:
      ValueError: on a file; on a folder that is not empty and `overwrite` is not set, or
        that has no marker.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or nothing there")
    ours = (LOCK_NAME, _PARTIAL_NAME)
    found = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    if found and not overwrite:
        raise ValueError(
            f"{folder} already holds {found[:5]}; choose another folder, or overwrite it"
        )
    if found and marker not in found:
        raise ValueError(f"{folder} holds no {marker}, and nothing else is overwritten")


def check_data(data: Mapping[str, Any]) -> None:
    """Refuses a description of activations that could not be saved.

    Raises:
      ValueError: if it is no mapping from strings to JSON values.
    """
    if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
        raise ValueError(f"data is {data!r}; allowed is a mapping from names to JSON values")
    for name, value in data.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"data[{name!r}] is {value!r}, a {type(value).__name__}; allowed are JSON values,"
                " such as str(path) and int(number)"
            ) from error


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """NaN and infinity, which JSON lacks, by name."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The reverse of `_jsonable`; version 1 wrote null for all that is not finite."""
    names = {None: math.nan, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    return {
        name: names[value] if value is None or isinstance(value, str) else value
        for name, value in values.items()
    }
