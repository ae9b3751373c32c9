"""What a sweep leaves: parameters, metrics and loss history of each member."""

import dataclasses
import json
import math
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sae_jax.activations.durable import write_text
from sae_jax.activations.locks import LOCK_NAME, lock
from sae_jax.architectures.base import SAE
from sae_jax.architectures.registry import architecture_of
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.formats import native
from sae_jax.sweep.provenance import as_saved

MANIFEST_NAME = "sweep.json"
HISTORY_NAME = "history.safetensors"
# The folder of the members. A sweep that replaces another takes the name that the other does not
# have, so that both are whole until the manifest names the new one.
MEMBERS_NAMES = ("members", "members.2")

_FORMAT = "sae_jax_sweep"
_FORMAT_VERSION = 2
# Version 1 kept the histories of all members in one file.
_ARRAYS_NAME_1 = "arrays.npz"
PARTIAL_NAME = ".members.partial"

# What reading raises if files are missing, cut off, or hold something else.
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
      config: the config that it was trained with.
      params: its parameters, without padding: `w_enc [D, F]`, `b_enc [F]`, `w_dec [F, D]`,
        `b_dec [D]`, and what else its architecture has. Those of a sweep on disk are read
        whenever they are asked for.
      metrics: scalar metrics on the validation samples, by name; they mean nothing if it
        diverged.
      firing_rate: share of the validation samples on which each latent fires, `[F]`.
      losses: loss of every training step before its update, `[num_steps]`.
      diverged_at: index of the first step whose loss is not finite, from 0; the number of steps
        if only the reconstructions after the last step are not finite; `None` if all are finite.
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
        """Config, metrics and divergence in one flat dict; metrics are `None` if it diverged."""
        has_scores = self.diverged_at is None
        scores = {name: value if has_scores else None for name, value in self.metrics.items()}
        return dataclasses.asdict(self.config) | scores | {"diverged_at": self.diverged_at}


def divergence(losses: np.ndarray, ended_finite: bool) -> int | None:
    """The value of `Member.diverged_at`.

    Args:
      losses: loss of every step, `[num_steps]`.
      ended_finite: whether reconstructions after the last step are finite.
    """
    steps = np.flatnonzero(~np.isfinite(losses))
    if steps.size:
        return int(steps[0])
    return None if ended_finite else len(losses)


@dataclasses.dataclass(frozen=True, eq=False)
class SweepResult:
    """Trained members in the order of their configs.

    Attributes:
      members: one member for each config.
      train_config: the settings that they shared.
      data: JSON values that say where the activations came from; empty if nobody said.
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
        """The config of each member."""
        return [member.config for member in self.members]

    def sae(self, i: int) -> SAE:
        """The trained SAE of member i."""
        return self.members[i].sae()

    def table(self, format: Literal["dicts", "pandas"] = "dicts") -> Any:
        """One row for each member: its config, every metric, and `diverged_at`.

        Metrics of a member that diverged are `None`. A metric that the data leave undefined, as
        `fvu` if all samples are equal, is NaN.

        Args:
          format: `"dicts"` for a list of flat dicts, or `"pandas"` for a `DataFrame`, which
            needs pandas to be installed.

        Raises:
          ValueError: if the format is another one.
        """
        rows = [member.row() for member in self.members]
        if format == "dicts":
            return rows
        if format == "pandas":
            import pandas

            return pandas.DataFrame(rows)
        raise ValueError(f"format is {format!r}; allowed are 'dicts' and 'pandas'")

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes everything to a folder, as `writing_sweep` describes.

        Raises:
          ValueError: as `writing_sweep` does.
        """
        with writing_sweep(folder, overwrite=overwrite) as writer:
            for i, member in enumerate(self.members):
                writer.write(i, member)
            writer.finish(self.train_config, self.data)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote. Members read their parameters whenever they are asked for.

        Raises:
          ValueError: if there is no sweep in the folder, or a part of it is missing or damaged.
        """
        folder = Path(folder)
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise ValueError(f"no sweep in {folder}: {MANIFEST_NAME} is missing")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if not {"identity", "groups"} <= manifest.keys():
                members = list(_members(folder, manifest))
                train_config = TrainConfig(**renamed(manifest["train_config"]))
                return cls(members, train_config, dict(manifest["data"]))
        except _DAMAGES as error:
            raise ValueError(f"the sweep in {folder} is damaged: {error!r}") from error
        raise ValueError(
            f"{folder} holds checkpoints of a sweep, and no finished one: train_sweep with"
            " checkpoint_dir naming it goes on from there"
        )


class SweepWriter:
    """Writes the members of one sweep, in any order, as they are trained."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._partial = folder / PARTIAL_NAME
        self._entries: dict[int, dict[str, Any]] = {}

    def write(self, i: int, member: Member) -> None:
        """Writes member i, which then need not be kept in memory."""
        folder = self._partial / f"{i:05d}"
        native.save(member.sae(), folder, _jsonable(member.row()), config=member.config)
        history = {
            "losses": np.ascontiguousarray(member.losses),
            "firing_rate": np.ascontiguousarray(member.firing_rate),
        }
        save_file(history, folder / HISTORY_NAME)
        self._entries[i] = {
            "config": dataclasses.asdict(member.config),
            "metrics": _jsonable(member.metrics),
            "diverged_at": member.diverged_at,
        }

    def finish(self, train_config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Makes the written members the folder's sweep, in place of the one that was there."""
        path = self._folder / MANIFEST_NAME
        before = _members_name(json.loads(path.read_text("utf-8"))) if path.exists() else None
        name = next(name for name in MEMBERS_NAMES if name != before)
        # Another process may have been killed while it replaced the sweep.
        shutil.rmtree(self._folder / name, ignore_errors=True)
        self._partial.rename(self._folder / name)
        manifest = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "train_config": dataclasses.asdict(train_config),
            "data": as_saved(data, self._folder),
            "folder": name,
            "members": [self._entries[i] for i in range(len(self._entries))],
        }
        write_text(path, json.dumps(manifest, indent=1))
        if before is not None:
            shutil.rmtree(self._folder / before)
        (self._folder / _ARRAYS_NAME_1).unlink(missing_ok=True)


@contextmanager
def writing_sweep(folder: str | Path, *, overwrite: bool = False) -> Iterator[SweepWriter]:
    """Gives a writer for a folder, which at every moment holds the old sweep or the whole new one.

    `members/00000` and so on each hold one SAE, which `sae_jax.formats.native.load` reads on its
    own. In a sweep that replaced another the folder may be `members.2`; the manifest says which.
    Files that others put there stay.

    Raises:
      ValueError: if the folder holds something and `overwrite` is not set, if it holds something
        other than a sweep, or if another process is writing to it.
    """
    folder = Path(folder)
    check_free(folder, overwrite)
    is_new = not folder.exists()
    try:
        with lock(folder):
            check_free(folder, overwrite)  # Another process may have been faster.
            partial = folder / PARTIAL_NAME
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
    version = manifest["version"]
    if manifest["format"] != _FORMAT or version not in (1, _FORMAT_VERSION):
        raise ValueError(
            f"{folder / MANIFEST_NAME} is {manifest['format']!r} of version {version!r}; this"
            f" reads {_FORMAT!r} up to {_FORMAT_VERSION}"
        )
    members, arrays_1 = folder / _members_name(manifest), folder / _ARRAYS_NAME_1
    with np.load(arrays_1, allow_pickle=False) if version == 1 else nullcontext({}) as arrays:
        for i, entry in enumerate(manifest["members"]):
            place = members / f"{i:05d}"
            config = SAEConfig(**entry["config"])
            native.check_holds(place, config)
            params = _StoredParams(place / native.WEIGHTS, native.array_names(config))
            if version == 1:
                losses, rate = arrays[f"losses_{i:05d}"], arrays[f"firing_rate_{i:05d}"]
            else:
                history = load_file(place / HISTORY_NAME)
                losses, rate = history["losses"], history["firing_rate"]
            d_sae = params.shapes["w_dec"][0]
            if losses.ndim != 1 or d_sae != config.d_sae or rate.shape != (config.d_sae,):
                raise ValueError(
                    f"{place} has d_sae {d_sae}, losses {losses.shape} and firing rates"
                    f" {rate.shape}; expected [num_steps] losses of {config}"
                )
            metrics = _numbers(entry["metrics"])
            if version == 1:
                diverged_at = divergence(losses, ended_finite=bool(np.isfinite(metrics["mse"])))
            else:
                diverged_at = entry["diverged_at"]
            yield Member(config, params, metrics, rate, losses, diverged_at)


_KERNELS_1 = {"auto": "auto", "dense": "dense", "compact": "firing_rows", "sparse": "selected_rows"}


def renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a training config or a group under today's names."""
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


class _StoredParams(Mapping[str, np.ndarray]):
    """The parameters in a safetensors file, read from it whenever one is asked for.

    Attributes:
      shapes: shape of each parameter by name.
    """

    def __init__(self, path: Path, needed: Sequence[str]):
        self._path = path
        with safe_open(path, framework="numpy") as file:
            self.shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        if missing := sorted({*needed} - self.shapes.keys()):
            raise ValueError(f"{path} lacks {missing}; it holds {list(self.shapes)}")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        with safe_open(self._path, framework="numpy") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def holds_sweep(folder: Path) -> bool:
    """Whether a folder holds a whole sweep, and not only what a killed process left there."""
    return (folder / MANIFEST_NAME).is_file()


def check_free(folder: Path, overwrite: bool, marker: str = MANIFEST_NAME) -> None:
    """Refuses a folder that holds something, unless it may be replaced.

    Args:
      folder: the folder to write to, which need not exist.
      overwrite: whether to allow a folder that holds the file `marker`.
      marker: name of a file by which a folder is known to be the program's own.

    Raises:
      ValueError: if `folder` is a file; or if it is not empty and `overwrite` is not set, or it
        holds no marker.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or nothing there")
    ours = (LOCK_NAME, PARTIAL_NAME)
    found = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    if found and not overwrite:
        raise ValueError(
            f"{folder} already holds {found[:5]}; choose another folder, or overwrite it"
        )
    if found and marker not in found:
        raise ValueError(f"{folder} holds no {marker}, and nothing else is overwritten")


def check_data(data: Mapping[str, Any]) -> None:
    """Refuses a description of activations that cannot be saved.

    Raises:
      ValueError: if it is not a mapping from strings to JSON values.
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
    """The values with NaN and infinity, which JSON lacks, as strings."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The reverse of `_jsonable`; version 1 wrote null for every number that is not finite."""
    return {
        name: math.nan if value is None else float(value) if isinstance(value, str) else value
        for name, value in values.items()
    }
