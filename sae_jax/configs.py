"""What a sweep is made of: one `SAEConfig` a member, one `TrainConfig` for all."""

import dataclasses
import itertools
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any, Literal

SEED_FIELDS = ("seed", "data_seed")
"""Fields of `SAEConfig` that repeat a setting and are no settings themselves."""

KERNELS = ("auto", "dense", "firing_rows", "selected_rows")

_MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """Everything in which a member of a sweep may differ from the others.

    Attributes:
      d_sae: dictionary size F.
      k: latents kept per sample, for architectures that keep a number of them.
      seed: PRNG seed of the initialization.
      learning_rate: of Adam.
      layer, position: the data slice; `None` when the sweep trains on one array.
      data_seed: PRNG seed of the order of the samples; `None` takes that of the
        `TrainConfig`, so that members see the same batches.
      architecture: name of the architecture, such as `"abs_topk"`, the published one, or
        `"topk"`, which ranks what a ReLU leaves.
      aux_coefficient: weight of the auxiliary loss AuxK, by which `topk` revives dead latents.
      aux_k: latents that AuxK may revive at a time; `None` for half the activations' width.
      dead_after: samples without firing after which AuxK takes a latent for dead; `None` for
        an epoch.
    """

    d_sae: int
    k: int | None = None
    seed: int = 0
    learning_rate: float = 1e-3
    layer: int | None = None
    position: int | str | None = None
    data_seed: int | None = None
    architecture: str = "abs_topk"
    aux_coefficient: float = 0.0
    aux_k: int | None = None
    dead_after: int | None = None

    def __post_init__(self) -> None:
        _make_integers(self, "d_sae", "seed")
        _make_integers(self, "k", "data_seed", "aux_k", "dead_after", optional=True)
        if self.d_sae < 1:
            raise ValueError(f"d_sae is {self.d_sae}; allowed is 1 or more")
        for name in ("k", "aux_k"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= self.d_sae:
                raise ValueError(f"{name} is {value}; allowed is 1 to d_sae = {self.d_sae}")
        for name in SEED_FIELDS:
            if getattr(self, name) is not None:
                _check_seed(name, getattr(self, name))
        if self.dead_after is not None and self.dead_after < 1:
            raise ValueError(f"dead_after is {self.dead_after}; allowed is 1 or more samples")
        _make_floats(self, "aux_coefficient")
        if not (math.isfinite(self.aux_coefficient) and self.aux_coefficient >= 0):
            raise ValueError(f"aux_coefficient is {self.aux_coefficient}; allowed is 0 or more")
        if not isinstance(self.architecture, str):
            raise ValueError(f"architecture is {self.architecture!r}; allowed is a name")
        _make_floats(self, "learning_rate")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; allowed is a positive number")
        for name in ("layer", "position"):
            if not isinstance(getattr(self, name), str | None):
                _make_integers(self, name)

    @property
    def data_slice(self) -> tuple[int | None, int | str | None]:
        """The (layer, position) whose activations the member trains on."""
        return self.layer, self.position

    @property
    def setting(self) -> "SAEConfig":
        """The config with seeds of 0: members are repetitions of one setting if these are equal."""
        return dataclasses.replace(self, seed=0, data_seed=None)

    @property
    def template(self) -> "SAEConfig":
        """The config without what is traced in training: equal ones share a compiled program."""
        return dataclasses.replace(
            self.setting,
            d_sae=1,
            k=None if self.k is None else 1,
            learning_rate=1.0,
            layer=None,
            position=None,
            aux_coefficient=float(self.aux_coefficient > 0),
            aux_k=None,
            dead_after=None,
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What the members of a sweep share.

    Attributes:
      epochs: passes over the training samples.
      batch_size: samples a step; the last, smaller batch of an epoch is kept.
      data_seed: PRNG seed of the order of the samples, for members that name none.
      compute_dtype: of the matrix products: `"float32"`, on every device; `"tf32"`, TF32 on
        GPUs that have it, three bfloat16 passes on TPUs, float32 elsewhere; or `"bfloat16"`.
        Accumulation, parameters and optimizer state stay float32, and so do scores.
      kernel: how decoding and gradients are computed: `"dense"`, by products of all latents;
        `"firing_rows"`, of those that fire in the batch; `"selected_rows"`, of those that a
        sample selects. Results are equal up to rounding; `"auto"` takes what should be fastest
        for each member.
      max_padding: largest share of a group's arithmetic that may be spent on padding;
        `None` takes the measured default of the backend.
      memory_budget: bytes a group may occupy; `None` takes most of what the device has.
    """

    epochs: int = 25
    batch_size: int = 256
    data_seed: int = 0
    compute_dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    kernel: Literal["auto", "dense", "firing_rows", "selected_rows"] = "auto"
    max_padding: float | None = None
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        _make_integers(self, "epochs", "batch_size", "data_seed")
        _check_seed("data_seed", self.data_seed)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 1 or more")
        if self.compute_dtype not in ("float32", "tf32", "bfloat16"):
            raise ValueError(
                f"compute_dtype is {self.compute_dtype!r}; allowed are 'float32', 'tf32' and"
                " 'bfloat16'"
            )
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is {self.kernel!r}; allowed are {', '.join(KERNELS)}")
        if self.max_padding is not None:
            _make_floats(self, "max_padding")
            if not 0 <= self.max_padding < 1:
                raise ValueError(f"max_padding is {self.max_padding}; allowed is 0 up to below 1")
        if self.memory_budget is not None:
            _make_integers(self, "memory_budget")
            if self.memory_budget < 1:
                raise ValueError(
                    f"memory_budget is {self.memory_budget}; allowed is 1 or more bytes"
                )


def _make_integers(config: Any, *names: str, optional: bool = False) -> None:
    """Turns whatever counts as an integer, such as NumPy's, into Python's, which JSON can hold."""
    for name in names:
        value = getattr(config, name)
        if value is None and optional:
            continue
        try:
            object.__setattr__(config, name, operator.index(value))
        except TypeError as error:
            raise ValueError(f"{name} is {value!r}; allowed is an integer") from error


def _make_floats(config: Any, *names: str) -> None:
    """Turns whatever counts as a real number into Python's, which JSON can hold."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, numbers.Real):
            raise ValueError(f"{name} is {value!r}; allowed is a number")
        object.__setattr__(config, name, float(value))


def _check_seed(name: str, seed: int) -> None:
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"{name} is {seed}; allowed is 0 to 2**32 - 1")


def grid(**values: Any) -> list[SAEConfig]:
    """Every combination of the given values, the last named varying fastest.

    Args:
      **values: fields of `SAEConfig`, each one value or an iterable of values.

    Returns:
      One config for each combination. `grid(d_sae=(250, 512), k=50, seed=range(5))` has 10.

    Raises:
      ValueError: if a field is unknown or a combination is not allowed.
    """
    known = [field.name for field in dataclasses.fields(SAEConfig)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown fields {unknown}; SAEConfig has {known}")
    axes = [
        list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        for value in values.values()
    ]
    return [
        SAEConfig(**dict(zip(values, point, strict=True))) for point in itertools.product(*axes)
    ]
