"""What a sweep leaves: parameters, metrics and loss history of each member."""

import dataclasses
import json
import shutil
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

_FORMAT_VERSION = 1


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
        """The first step whose loss was not finite, from 0; `None` if there is none."""
        steps = np.flatnonzero(~np.isfinite(self.losses))
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
          ValueError: if the folder holds something already and `overwrite` is not set.
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
            "format": "sae_jax_sweep",
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
          ValueError: if there is no sweep in the folder, or a part of it is missing.
        """
        folder = Path(folder)
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise ValueError(f"no sweep in {folder}: {MANIFEST_NAME} is missing")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            train_config = TrainConfig(**manifest["train_config"])
            entries = [(SAEConfig(**m["config"]), m["metrics"]) for m in manifest["members"]]
            with np.load(folder / ARRAYS_NAME, allow_pickle=False) as arrays:
                histories = [
                    (arrays[f"losses_{i:05d}"], arrays[f"firing_rate_{i:05d}"])
                    for i in range(len(entries))
                ]
        except (KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"the sweep in {folder} is damaged: {error!r}") from error
        members = []
        for i, ((config, metrics), (losses, firing_rate)) in enumerate(
            zip(entries, histories, strict=True)
        ):
            sae = native.load(folder / MEMBERS_NAME / f"{i:05d}")
            params = {name: np.asarray(array) for name, array in sae.params.items()}
            scalars = {name: np.nan if value is None else value for name, value in metrics.items()}
            members.append(Member(config, params, scalars, firing_rate, losses))
        return cls(members, train_config, manifest["data"])


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds something, unless it may be replaced."""
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(
            f"{folder} already holds {sorted(p.name for p in folder.iterdir())[:5]}; choose another"
            " folder, or overwrite it"
        )


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """NaN and infinity, which JSON lacks, as null."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in values.items()
    }
