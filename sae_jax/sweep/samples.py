"""What a sweep trains and scores on: samples, and for transcoders their targets."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import jax
import numpy as np

from sae_jax.activations.live import LiveSelection
from sae_jax.activations.matrix import Matrix, OnDemand
from sae_jax.activations.selection import Selection
from sae_jax.activations.slices import ActivationData, DataSlice, Slices, of_slice, slices_of
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.sweep.checksums import fingerprint, fingerprint_of_samples
from sae_jax.sweep.normalization import Normalization


class Normalized(NamedTuple):
    """Training samples as a group sees them.

    Attributes:
      x: normalized samples, float32 `[n, D]`.
      y: normalized targets, float32 `[n, D_out]`, if those are not the samples themselves.
      x_norm: what was done to the samples.
      y_norm: what was done to the targets.
    """

    x: Matrix
    y: Matrix | None
    x_norm: Normalization
    y_norm: Normalization


class SweepSamples:
    """Checked samples and targets of every data slice.

    Attributes:
      sizes: number of training samples, width of a sample and of a target, by data slice.
      num_val: number of validation samples, by data slice.
      has_targets: whether there are targets beside the samples.
      live: where training rows come from, if they come while training goes on.
    """

    def __init__(
        self,
        train: Slices,
        val: Slices,
        targets: Slices | None,
        val_targets: Slices | None,
        target_weights: Sequence[float] | None,
    ):
        self._train, self._val = train, val
        self._targets, self._val_targets = targets, val_targets
        self.sizes = {
            data_slice: (*shape, targets.d_in if targets else train.d_in)
            for data_slice, shape in train.shapes.items()
        }
        self.num_val = {data_slice: rows for data_slice, (rows, _) in val.shapes.items()}
        self.has_targets = targets is not None
        self.live = train.live
        d_out = next(iter(self.sizes.values()))[2]
        self._target_scale = _target_scale(target_weights, d_out)

    @classmethod
    def of(
        cls,
        train: ActivationData,
        val: ActivationData,
        targets: ActivationData | None = None,
        val_targets: ActivationData | None = None,
        target_weights: Sequence[float] | None = None,
    ) -> Self:
        """Checks everything that `train_sweep` was given, but for values, which are not read.

        Raises:
          ValueError: if slices, widths or numbers of rows do not fit each other.
        """
        x_train, x_val = slices_of(train, "train"), slices_of(val, "val")
        if x_train.keys() != x_val.keys():
            raise ValueError(f"train has slices {list(x_train)}, val has {list(x_val)}")
        if x_train.d_in != x_val.d_in:
            raise ValueError(f"train has activations of width {x_train.d_in}, val of {x_val.d_in}")
        if (targets is None) != (val_targets is None):
            missing = "targets" if targets is None else "val_targets"
            raise ValueError(f"{missing} is None; expected both of targets and val_targets")
        if targets is None or val_targets is None:
            if target_weights is not None:
                raise ValueError("target_weights is given without targets; expected both")
            return cls(x_train, x_val, None, None, None)
        y_train = _fitting(slices_of(targets, "targets"), x_train, "targets", "train")
        y_val = _fitting(slices_of(val_targets, "val_targets"), x_val, "val_targets", "val")
        if y_train.live is not x_train.live:
            raise ValueError("train and targets are not of one LiveStore; expected both or none")
        if y_train.d_in != y_val.d_in:
            raise ValueError(f"targets has width {y_train.d_in}, val_targets {y_val.d_in}")
        return cls(x_train, x_val, y_train, y_val, target_weights)

    @property
    def offset_severity(self) -> Mapping[DataSlice, float]:
        """Norm of the training samples' mean over that of their standard deviations, by data slice.

        Where it is above 1 latents die of the offset (Simon, Adams and Zou 2026, arXiv:2605.31518).
        """
        return self._train.offset_severity

    @property
    def constant(self) -> Sequence[DataSlice]:
        """Data slices whose validation rows are all equal."""
        return (self._val_targets or self._val).constant

    def check_values(self) -> None:
        """Reads everything once, as `Slices.check_values` says."""
        for part in (self._train, self._val, self._targets, self._val_targets):
            if part is not None:
                part.check_values()

    def check(self, config: SAEConfig) -> None:
        """Refuses a config that these samples cannot train.

        Raises:
          ValueError: where there are targets and the config ties input and output together.
        """
        if self._targets is None:
            return
        d_in, d_out = self._train.d_in, self._targets.d_in
        if config.center_input or config.normalize == "layer_norm":
            found = "center_input" if config.center_input else "normalize='layer_norm'"
            raise ValueError(
                f"{config} has {found}, which gives the input's own statistics to the output;"
                " with targets allowed are normalize='center' and 'center_and_scale'"
            )
        if config.tied_init and d_in != d_out:
            raise ValueError(
                f"{config} has tied_init; samples have width {d_in} and targets {d_out}, and"
                " allowed is one width"
            )

    def fitted(self, train_config: TrainConfig) -> TrainConfig:
        """The config as these samples need it: live ones are streamed.

        Raises:
          ValueError: if it asks for what live samples cannot give.
        """
        if self.live is None:
            return train_config
        if train_config.epochs != 1:
            raise ValueError(
                f"epochs is {train_config.epochs}; a live store is trained on once: epochs=1"
            )
        if train_config.stream is False:
            raise ValueError("stream is False; a live store is streamed: stream=None or True")
        return dataclasses.replace(train_config, stream=True)

    def planned_sizes(self, batch_size: int) -> dict[DataSlice, tuple[int, int, int]]:
        """The `sizes` to plan with: of live samples, those that can be relied on to be there.

        A part of them, with what is left over for a smaller batch, has to fit the shortest window
        but the last, or it would reach into a third one, which is not there yet.

        Raises:
          ValueError: if a window of live samples has fewer rows than two batches.
        """
        if self.live is None:
            return self.sizes
        sizes = np.diff([0, *self.live.ends])
        window = int(min(sizes[:-1], default=sizes[-1]))
        if window < 2 * batch_size:
            raise ValueError(
                f"a window of the live store has {window} rows; expected two batches of"
                f" {batch_size} at least: extract with a larger window"
            )
        return {
            data_slice: (window - batch_size, d_in, d_out)
            for data_slice, (_, d_in, d_out) in self.sizes.items()
        }

    def check_resumable(self, checkpoint_dir: object) -> None:
        """Refuses live samples where some would be needed again after they are gone.

        Raises:
          ValueError: if there are no checkpoints, samples to validate on are live, or several
            processes train.
        """
        if self.live is None:
            return
        if (num_processes := jax.process_count()) > 1:
            raise ValueError(f"{num_processes} processes train; a live store is trained on by one")
        if checkpoint_dir is None:
            raise ValueError(
                "checkpoint_dir is None; a live store needs one, since what was trained on is"
                " removed"
            )
        if self._val.live or (self._val_targets and self._val_targets.live):
            raise ValueError("val is of a live store; expected samples that stay")

    def val(self, data_slice: DataSlice, *, streamed: bool = False) -> tuple[Matrix, Matrix | None]:
        """Validation samples `[n, D]`, and targets `[n, D_out]` if they are others; arrays unless
        they are streamed."""
        x = self._val[data_slice]
        y = self._val_targets[data_slice] if self._val_targets else None
        return (x, y) if streamed else (x[:], None if y is None else y[:])

    def normalized(self, data_slice: DataSlice, kind: str, *, streamed: bool = False) -> Normalized:
        """Training samples and targets, normalized as `SAEConfig.normalize` says; arrays unless
        they are streamed, in which case they are normalized as they are read."""

        def given(slices: Slices) -> Matrix:
            return slices[data_slice] if streamed else slices[data_slice][:]

        def done(norm: Normalization, samples: Matrix) -> Matrix:
            return norm.on_demand(samples) if streamed else norm(samples[:])

        x = given(self._train)
        of_x = Normalization.of(x, kind)
        if self._targets is None:
            return Normalized(done(of_x, x), None, of_x, of_x)
        y = given(self._targets)
        of_y = Normalization.of(y, kind)
        of_y = of_y._replace(scale=of_y.scale * self._target_scale)
        return Normalized(done(of_x, x), done(of_y, y), of_x, of_y)

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """What tells these samples from others, as JSON values."""
        parts = {
            "train": self._train,
            "val": self._val,
            "targets": self._targets,
            "val_targets": self._val_targets,
        }
        prints = {
            name: {
                f"{layer}, {position}": fingerprint_of_samples(x)
                for (layer, position), x in part.items()
            }
            for name, part in parts.items()
            if part is not None
        }
        if self._targets is not None:
            prints["target_scale"] = {"all": fingerprint(self._target_scale)}
        return prints


def side_by_side(*layers: np.ndarray | Selection | LiveSelection) -> np.ndarray | OnDemand:
    """Activations of the same samples in several layers as one, `[n, D_1 + D_2 + ...]`.

    Trained to reconstruct such samples, given as `targets` too, an SAE is a crosscoder (Lindsey
    et al. 2024, transformer-circuits.pub/2024/crosscoders), and `target_weights` weighs layers.

    Args:
      *layers: arrays `[n, D]`, or selections of a store, which are read when they are asked for.

    Raises:
      ValueError: if there are none, or their numbers of rows differ, or only some of them are
        selections.
    """
    rows = [len(layer) for layer in layers]
    if len(set(rows)) != 1:
        raise ValueError(f"layers have {rows} rows; expected one number of rows")
    parts = [layer.matrix for layer in layers if isinstance(layer, Selection | LiveSelection)]
    if not parts:
        return np.concatenate([np.asarray(layer, np.float32) for layer in layers], axis=1)
    if len(parts) < len(layers):
        raise ValueError(
            f"{len(parts)} of {len(layers)} layers are selections; expected all of them"
        )
    if len({part.live for part in parts}) > 1:
        raise ValueError("layers are not all of one LiveStore; expected all or none of them")
    return OnDemand(
        (rows[0], sum(part.shape[1] for part in parts)),
        lambda rows: np.concatenate([part[rows] for part in parts], axis=1),
        parts[0].live,
    )


def _fitting(targets: Slices, samples: Slices, name: str, of: str) -> Slices:
    """Targets under the data slices of their samples, checked to be as many."""
    if len(targets) == len(samples) == 1:
        targets = targets.renamed(next(iter(samples)))
    if targets.keys() != samples.keys():
        raise ValueError(f"{of} has slices {list(samples)}, {name} has {list(targets)}")
    for data_slice in samples:
        found, needed = targets.shapes[data_slice][0], samples.shapes[data_slice][0]
        if found != needed:
            raise ValueError(
                f"{name}{of_slice(data_slice)} has {found} rows; expected {needed}, one for each"
                f" of {of}"
            )
    return targets


def _target_scale(weights: Sequence[float] | None, d_out: int) -> np.ndarray:
    """What targets are divided by so that squared errors come weighed, float32 `[D_out]`."""
    if weights is None:
        return np.ones(d_out, np.float32)
    values = np.asarray(weights, np.float64)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"target_weights is {weights!r}; allowed are positive numbers")
    if d_out % len(values):
        raise ValueError(
            f"target_weights has {len(values)} entries; expected a divisor of the targets' width"
            f" {d_out}, one for each of so many equal parts"
        )
    return np.repeat(1 / np.sqrt(values), d_out // len(values)).astype(np.float32)
