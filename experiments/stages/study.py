"""What the stages of the study share: activations, settings and trained sweeps."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import sae_jax
from sae_jax.sweep.result import holds_sweep

ARMS = ("none", "center", "center_and_scale")
"""What is done to the samples: nothing, as published; centered; centered and scaled."""

RAW_AND_CENTERED = ARMS[:2]

CENTRAL = {"k": 50, "d_sae": 512}
"""The published setting around which the study turns."""

TRAIN_FRACTION, SPLIT_SEED = 0.8, 42

Slice = tuple[int, int | str]


@dataclasses.dataclass(frozen=True)
class Study:
    """Activations, and how much is trained on them.

    Attributes:
      store: activations of the model's thoughts.
      untrained_store: those of the same model with random weights, if they were extracted.
      load_model: loads the model that the activations come from, for interventions; `None` where
        there are only activations.
      layer, position: the slice that the published experiment is repeated on.
      map_layers: layers of the map, at all positions of the store.
      seeds: seeds of each setting, which vary the initialization and the order of the samples.
      epochs: passes over the training samples.
      map_epochs: the same for the map and for what is trained on every slice.
      output: folder of the sweeps.
    """

    store: sae_jax.ActivationStore
    untrained_store: sae_jax.ActivationStore | None
    load_model: Callable[[], Any] | None
    layer: int
    position: int | str
    map_layers: tuple[int, ...]
    seeds: int
    epochs: int
    map_epochs: int
    output: Path

    @property
    def slice(self) -> Slice:
        """Layer and position of the slice that the published experiment is repeated on."""
        return self.layer, self.position

    @cached_property
    def central(self) -> sae_jax.Split:
        """The samples of that slice."""
        return self.split(self.slice)

    def split(self, of: Slice) -> sae_jax.Split:
        """The samples of a slice, split by problem as published."""
        layer, position = of
        selection = self.store.select(layer=layer, position=position)
        return selection.split(train_fraction=TRAIN_FRACTION, seed=SPLIT_SEED)

    def splits(self, layers: Iterable[int]) -> list[sae_jax.Split]:
        """The samples of every position at these layers."""
        return [
            self.split((layer, position)) for layer in layers for position in self.store.positions
        ]

    def members(self, **values: Any) -> list[sae_jax.SAEConfig]:
        """`sae_jax.grid` with every seed, which is that of the order of the samples too."""
        configs = sae_jax.grid(**values, seed=range(self.seeds))
        return [dataclasses.replace(config, data_seed=config.seed) for config in configs]

    def sweep(
        self,
        name: str,
        configs: Sequence[sae_jax.SAEConfig],
        train: Any,
        val: Any,
        epochs: int | None = None,
    ) -> sae_jax.SweepResult:
        """Trains members, or reads them if a sweep of this name has been trained before.

        A sweep that was stopped goes on from its last checkpoint.
        """
        folder = self.output / "sweeps" / name
        if holds_sweep(folder):
            return sae_jax.SweepResult.load(folder)
        checkpoints = self.output / "checkpoints" / name
        result = sae_jax.train_sweep(
            configs,
            train,
            val,
            sae_jax.TrainConfig(epochs=epochs or self.epochs),
            checkpoint_dir=checkpoints,
            output=folder,
        )
        shutil.rmtree(checkpoints, ignore_errors=True)
        return result

    def forget(self, name: str) -> None:
        """Deletes a sweep that no other stage reads."""
        shutil.rmtree(self.output / "sweeps" / name)
