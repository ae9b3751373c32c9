"""What a sweep leaves: parameters, metrics and loss history of each member."""

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.formats import native
from sae_jax.sae import TopKSAE

MANIFEST_NAME = "sweep.json"
ARRAYS_NAME = "arrays.npz"
MEMBERS_NAME = "members"

_FORMAT = "sae_jax_sweep"
_FORMAT_VERSION = 1

# What reading raises, of files that are missing, cut off, or hold something else.
_DAMAGES = (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One trained SAE with its scores.

    Attributes:
      config: what it was trained with.
      params: `w_enc [D, F]`, `b_enc [F]`, `w_dec [F, D]`, `b_dec [D]`, of its true size.
      metrics: scalars by name, on the validation samples.
      firing_rate: `[F]`, on the validation samples.
      losses: of every training step, each before its update, `[num_steps]`.
    """

    config: SAEConfig
    params: Mapping[str, np.ndarray]
    metrics: Mapping[str, float]
    firing_rate: np.ndarray
    losses: np.ndarray

    @property
    def diverged_at(self) -> int | None:
        """The first step whose loss was not finite, from 0; `None` if there is none.

        It is the number of steps where the last of them made `mse` infinite or NaN: each
        loss is of the parameters before its step.
        """
        steps = np.flatnonzero(~np.isfinite([*self.losses, self.metrics["mse"]]))
        return int(steps[0]) if steps.size else None

    def sae(self) -> TopKSAE:
        """The trained SAE."""
        return TopKSAE(self.params, self.config.k)

    def row(self) -> dict[str, Any]:
        """Config, metrics and divergence in one flat dict."""
        return (
            dataclasses.asdict(self.config) | dict(self.metrics) | {"diverged_at": self.diverged_at}
        )


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

    def __len__(self) -> int:
        return len(self.members)

    @property
    def configs(self) -> list[SAEConfig]:
        """The members' configs."""
        return [member.config for member in self.members]

    def sae(self, i: int) -> TopKSAE:
        """The trained SAE of member i."""
        return self.members[i].sae()

    def table(self, format: Literal["dicts", "pandas"] = "dicts") -> Any:
        """One row a member: its config, every metric, and `diverged_at`.

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
        """Writes everything to a folder, which appears whole or not at all.

        `members/00000` and so on each hold one SAE that `sae_jax.formats.native.load`
        reads without the rest.

        Raises:
          ValueError: if the folder holds something already and `overwrite` is not set, or
            it holds something else than a sweep.
        """
        folder = Path(folder)
        check_free(folder, overwrite)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for i, member in enumerate(self.members):
            native.save(member.sae(), partial / MEMBERS_NAME / f"{i:05d}", _jsonable(member.row()))
        arrays = {}
        for i, member in enumerate(self.members):
            arrays[f"losses_{i:05d}"] = member.losses
            arrays[f"firing_rate_{i:05d}"] = member.firing_rate
        np.savez(partial / ARRAYS_NAME, allow_pickle=False, **arrays)
        manifest = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "train_config": dataclasses.asdict(self.train_config),
            "data": dict(self.data),
            "members": [
                {"config": dataclasses.asdict(member.config), "metrics": _jsonable(member.metrics)}
                for member in self.members
            ],
        }
        (partial / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote.

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
            found = manifest["format"], manifest["version"]
            if found != (_FORMAT, _FORMAT_VERSION):
                raise ValueError(f"{path} is {found}; this reads {(_FORMAT, _FORMAT_VERSION)}")
            train_config = TrainConfig(**manifest["train_config"])
            with np.load(folder / ARRAYS_NAME, allow_pickle=False) as arrays:
                members = [
                    _read_member(folder / MEMBERS_NAME, i, entry, arrays)
                    for i, entry in enumerate(manifest["members"])
                ]
            return cls(members, train_config, dict(manifest["data"]))
        except _DAMAGES as error:
            raise ValueError(f"the sweep in {folder} is damaged: {error!r}") from error


def _read_member(
    folder: Path, i: int, entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Member:
    config = SAEConfig(**entry["config"])
    metrics = {name: np.nan if value is None else value for name, value in entry["metrics"].items()}
    sae = native.load(folder / f"{i:05d}")
    if not isinstance(sae, TopKSAE) or (sae.d_sae, sae.k) != (config.d_sae, config.k):
        raise ValueError(f"member {i} is {sae}; its config is {config}")
    params = {name: np.asarray(array) for name, array in sae.params.items()}
    losses, firing_rate = arrays[f"losses_{i:05d}"], arrays[f"firing_rate_{i:05d}"]
    if losses.ndim != 1 or firing_rate.shape != (config.d_sae,):
        raise ValueError(
            f"member {i} has losses {losses.shape} and firing rates {firing_rate.shape};"
            f" expected [num_steps] and ({config.d_sae},)"
        )
    return Member(config, params, metrics, firing_rate, losses)


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
    found = sorted(path.name for path in folder.iterdir())
    if found and not overwrite:
        raise ValueError(
            f"{folder} already holds {found[:5]}; choose another folder, or overwrite it"
        )
    if found and marker not in found:
        raise ValueError(f"{folder} holds no {marker}, and nothing else is overwritten")


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """NaN and infinity, which JSON lacks, as null."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in values.items()
    }
