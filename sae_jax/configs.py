"""What a sweep is made of: one `SAEConfig` a member, one `TrainConfig` for all."""

import dataclasses
import itertools
import math
import numbers
import operator
import re
from collections.abc import Iterable
from typing import Any, Literal

SEED_FIELDS = ("seed", "data_seed")
"""Fields of `SAEConfig` that repeat a setting and are no settings themselves."""

CHOICES: dict[str, tuple[str | None, ...]] = {
    "preset": (None, "saelens", "dictionary_learning"),
    "sparsity_loss": ("step", "tanh"),
    "normalize": ("none", "center", "center_and_scale", "layer_norm"),
    "b_dec_init": ("uniform", "zeros", "mean", "geometric_median"),
    "frozen": (None, "decoder", "encoder"),
    "compute_dtype": ("float32", "tf32", "bfloat16"),
    "kernel": ("auto", "dense", "firing_rows", "selected_rows"),
}
"""What the fields of a config that name something may be."""

MESH_AXES = ("members", "data", "latents")
"""Along what a sweep may be spread over devices."""

_MESH_AXIS = re.compile(rf"({'|'.join(MESH_AXES)}):([1-9][0-9]*)")

_STEP_FIELDS = ("sparsity_warmup_steps", "warmup_steps", "decay_steps", "k_anneal_steps")
_OPTIONAL_FLOATS = ("sparsity_coefficient", "bandwidth", "threshold_init", "clip_norm")

_MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """Everything in which a member of a sweep may differ from the others.

    The defaults are the published experiment's recipe. A default of `None` follows from the
    architecture, the preset and the data, as `fill` of each architecture says.

    Attributes:
      d_sae: dictionary size F.
      k: latents kept per sample, for architectures that keep a number of them.
      seed: PRNG seed of the initialization.
      learning_rate: of the optimizer, after the warm-up and before the decay.
      layer, position: the data slice; `None` when the sweep trains on one array.
      data_seed: PRNG seed of the order of the samples; `None` takes that of the
        `TrainConfig`, so that members see the same batches.
      architecture: name of the architecture: `"abs_topk"`, the published one; `"topk"`,
        `"batch_topk"`, `"matryoshka"`, `"jumprelu"`, `"gated"` or `"relu"`.
      preset: `"saelens"` or `"dictionary_learning"` for that library's latents, loss and
        constants, where they differ from those here. Its recipe, such as `center_input` or
        `unit_decoder`, is for the other fields to say.
      aux_coefficient: weight of the auxiliary loss AuxK, by which dead latents are revived.
      aux_k: latents that AuxK may revive at a time; `None` for half the activations' width.
      dead_after: samples without firing after which a latent counts as dead; `None` for an
        epoch.
      target_l0: mean number of latents that should fire, for architectures that penalize
        firing; the weight of the penalty is then adapted until it is so.
      sparsity_coefficient: weight of the penalty on firing; with a target its first value.
      sparsity_loss: what `jumprelu` penalizes: `"step"` counts the latents that fire, `"tanh"`
        adds up how strongly they do.
      sparsity_warmup_steps: steps over which the penalty grows from zero.
      bandwidth: width of the window around a threshold in which `jumprelu` has a gradient.
      threshold_init: thresholds of `jumprelu` before the first step.
      prefix_fractions: shares of the dictionary, each larger than the one before and the last 1,
        that `matryoshka` makes reconstruct alone.
      normalize: what is done to samples before training, with statistics of the training
        split: `"center"` subtracts their mean, `"center_and_scale"` also divides by one number
        so that the mean square is 1; `"layer_norm"` standardizes each sample by itself. Trained
        SAEs take raw samples all the same.
      center_input: whether `b_dec`, which is trained, is subtracted from a sample before
        encoding.
      b_dec_init: what `b_dec` starts from: random numbers, zeros, or the mean or the geometric
        median of the training samples.
      tied_init: whether the encoder starts as the decoder's transpose, with biases of zero.
      unit_decoder: whether decoder rows keep norm 1: the part of the gradient along a row is
        removed, and the row scaled back after each step.
      warmup_steps: steps over which the learning rate grows to its value.
      decay_steps: last steps of training, over which the learning rate falls to zero.
      clip_norm: largest norm of a step's gradient, of all parameters together.
      k_anneal_steps: steps over which k falls from d_sae, or the activations' width if that is
        less, to its value.
      weight_average: decay of the exponential mean of the parameters that is kept, scored and
        returned instead of the last ones; 0 for the last ones.
      frozen: `"decoder"` or `"encoder"`, to leave that matrix as it was drawn: a baseline.
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
    preset: Literal["saelens", "dictionary_learning"] | None = None
    target_l0: float | None = None
    sparsity_coefficient: float | None = None
    sparsity_loss: Literal["step", "tanh"] = "step"
    sparsity_warmup_steps: int = 0
    bandwidth: float | None = None
    threshold_init: float | None = None
    prefix_fractions: tuple[float, ...] | None = None
    normalize: Literal["none", "center", "center_and_scale", "layer_norm"] = "none"
    center_input: bool = False
    b_dec_init: Literal["uniform", "zeros", "mean", "geometric_median"] = "uniform"
    tied_init: bool = False
    unit_decoder: bool = False
    warmup_steps: int = 0
    decay_steps: int = 0
    clip_norm: float | None = None
    k_anneal_steps: int = 0
    weight_average: float = 0.0
    frozen: Literal["decoder", "encoder"] | None = None

    def __post_init__(self) -> None:
        _make_integers(self, "d_sae", "seed", *_STEP_FIELDS)
        _make_integers(self, "k", "data_seed", "aux_k", "dead_after", optional=True)
        _make_floats(self, "learning_rate", "aux_coefficient", "weight_average")
        _make_floats(self, "target_l0", *_OPTIONAL_FLOATS, optional=True)
        _check(self, "d_sae", self.d_sae >= 1, "1 or more")
        for name in ("k", "aux_k"):
            value = getattr(self, name)
            fits = value is None or 1 <= value <= self.d_sae
            _check(self, name, fits, f"1 to d_sae = {self.d_sae}")
        target = self.target_l0
        fits = target is None or 0 < target <= self.d_sae
        _check(self, "target_l0", fits, f"a number above 0, up to d_sae = {self.d_sae}")
        for name in SEED_FIELDS:
            if getattr(self, name) is not None:
                _check_seed(name, getattr(self, name))
        dead_after = self.dead_after
        _check(self, "dead_after", dead_after is None or dead_after >= 1, "1 or more samples")
        for name in ("aux_coefficient", *_STEP_FIELDS):
            _check(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in ("learning_rate", *_OPTIONAL_FLOATS):
            value = getattr(self, name)
            _check(self, name, value is None or 0 < value < math.inf, "a positive number")
        _check(self, "weight_average", 0 <= self.weight_average < 1, "0 up to below 1")
        if not isinstance(self.architecture, str):
            raise ValueError(f"architecture is {self.architecture!r}; allowed is a name")
        _check_choices(self)
        for name in ("layer", "position"):
            if not isinstance(getattr(self, name), str | None):
                _make_integers(self, name)
        self._check_prefixes()
        self._check_together()

    def _check_prefixes(self) -> None:
        if self.prefix_fractions is None:
            return
        try:
            fractions = tuple(float(fraction) for fraction in self.prefix_fractions)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"prefix_fractions is {self.prefix_fractions!r}; allowed are numbers"
            ) from error
        object.__setattr__(self, "prefix_fractions", fractions)
        sizes = self.prefix_sizes
        increasing = all(a < b for a, b in itertools.pairwise((0, *sizes)))
        fits = len(fractions) > 0 and increasing and fractions[-1] == 1.0
        _check(
            self,
            "prefix_fractions",
            fits,
            f"numbers that grow to 1, each by at least one of d_sae = {self.d_sae} latents",
        )

    def _check_together(self) -> None:
        if self.frozen == "decoder" and self.aux_coefficient:
            raise ValueError(
                f"aux_coefficient is {self.aux_coefficient} beside frozen='decoder'; allowed is 0:"
                " a frozen decoder cannot learn what a revived latent should mean"
            )
        if self.frozen == "decoder" and self.unit_decoder:
            raise ValueError("unit_decoder is True beside frozen='decoder'; allowed is False")
        if self.normalize in ("center", "center_and_scale") and self.b_dec_init in (
            "mean",
            "geometric_median",
        ):
            raise ValueError(
                f"b_dec_init is {self.b_dec_init!r} beside normalize={self.normalize!r}; allowed"
                " are 'uniform' and 'zeros', as the mean is subtracted already"
            )
        if self.k is None and self.k_anneal_steps:
            raise ValueError(f"k_anneal_steps is {self.k_anneal_steps} without k; allowed is 0")

    @property
    def prefix_sizes(self) -> tuple[int, ...]:
        """Latents of each nested prefix."""
        return tuple(round(fraction * self.d_sae) for fraction in self.prefix_fractions or ())

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
        # A dictionary with room for every prefix.
        num_prefixes = len(self.prefix_fractions or ())
        return dataclasses.replace(
            self.setting,
            d_sae=max(num_prefixes, 1),
            k=None if self.k is None else 1,
            learning_rate=1.0,
            layer=None,
            position=None,
            aux_coefficient=float(self.aux_coefficient > 0),
            aux_k=None,
            dead_after=None,
            target_l0=None if self.target_l0 is None else 1.0,
            sparsity_coefficient=None if self.sparsity_coefficient is None else 1.0,
            sparsity_warmup_steps=0,
            bandwidth=None,
            threshold_init=None,
            prefix_fractions=tuple((i + 1) / num_prefixes for i in range(num_prefixes)) or None,
            warmup_steps=0,
            decay_steps=0,
            clip_norm=None if self.clip_norm is None else 1.0,
            k_anneal_steps=min(self.k_anneal_steps, 1),
            weight_average=0.5 * (self.weight_average > 0),
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What the members of a sweep share.

    Attributes:
      epochs: passes over the training samples.
      batch_size: samples a step; the last, smaller batch of an epoch is kept.
      data_seed: PRNG seed of the order of the samples, for members that name none.
      compute_dtype: of the matrix products: `"float32"`, on every device; `"tf32"`, TF32 on
        GPUs that have it, three bfloat16 passes on TPUs and CPUs with AMX, float32 elsewhere;
        or `"bfloat16"`, in which loops in C++ leave rows that samples select unrounded.
        Accumulation, parameters and optimizer state stay float32, and so do scores.
      kernel: how decoding and gradients are computed: `"dense"`, by products of all latents;
        `"firing_rows"`, of those that fire in the batch, but for a last, smaller batch of many;
        `"selected_rows"`, of those that a sample selects. Results are equal up to rounding;
        `"auto"` takes what should be fastest for each member.
      max_padding: largest share of a group's arithmetic that may be spent on padding;
        `None` takes half on an accelerator, and on a CPU as much as costs less time than
        compiling another program would.
      memory_budget: bytes that a group may occupy, of each accelerator or of all cores together;
        `None` takes most of what there is.
      mesh: number of devices along axes of `MESH_AXES`, as `"members:4,data:2"`: members are spread
        over devices, batches divided, or dictionaries; `None` takes all devices for members, as
        far as there are members, and accelerators left over for data. Each core is a device, unless
        JAX computed something before or its `jax_num_cpu_devices` says otherwise.
      stream: whether samples are read while a group trains, a few batches at a time, and do not
        lie on the device; `None` for those that with an epoch's copy would take more than half of
        the memory budget, or leave too little for a member. Batches are the same either way.
    """

    epochs: int = 25
    batch_size: int = 256
    data_seed: int = 0
    compute_dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    kernel: Literal["auto", "dense", "firing_rows", "selected_rows"] = "auto"
    max_padding: float | None = None
    memory_budget: int | None = None
    mesh: str | None = None
    stream: bool | None = None

    def data_seed_of(self, config: SAEConfig) -> int:
        """PRNG seed of the order in which a member sees the samples."""
        return self.data_seed if config.data_seed is None else config.data_seed

    def __post_init__(self) -> None:
        _make_integers(self, "epochs", "batch_size", "data_seed")
        _make_integers(self, "memory_budget", optional=True)
        _make_floats(self, "max_padding", optional=True)
        _check_seed("data_seed", self.data_seed)
        _check(self, "epochs", self.epochs >= 1, "1 or more")
        _check(self, "batch_size", self.batch_size >= 1, "1 or more")
        _check_choices(self)
        padding, budget = self.max_padding, self.memory_budget
        _check(self, "max_padding", padding is None or 0 <= padding < 1, "0 up to below 1")
        _check(self, "memory_budget", budget is None or budget >= 1, "1 or more bytes")
        stream = self.stream
        _check(self, "stream", stream is None or isinstance(stream, bool), "None, True or False")
        if self.mesh is not None:
            _, num_shares, _ = mesh_shape(self.mesh)
            divisible = self.batch_size % num_shares == 0
            _check(self, "batch_size", divisible, f"a multiple of {num_shares}, as mesh has data")


def mesh_shape(mesh: str) -> tuple[int, int, int]:
    """Number of devices along each of `MESH_AXES`, of which a mesh may name some.

    Raises:
      ValueError: if the text is not a list such as `"members:4,data:2"`.
    """
    words = mesh.split(",") if isinstance(mesh, str) else []
    found = [_MESH_AXIS.fullmatch(word.strip()) for word in words]
    sizes = {match[1]: int(match[2]) for match in found if match}
    if not words or len(sizes) < len(words):
        raise ValueError(
            f"mesh is {mesh!r}; allowed are numbers of devices along {', '.join(MESH_AXES)}, such"
            " as 'members:4,data:2'"
        )
    members, data, latents = (sizes.get(axis, 1) for axis in MESH_AXES)
    return members, data, latents


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


def _make_floats(config: Any, *names: str, optional: bool = False) -> None:
    """Turns whatever counts as a real number into Python's, which JSON can hold."""
    for name in names:
        value = getattr(config, name)
        if value is None and optional:
            continue
        if not isinstance(value, numbers.Real):
            raise ValueError(f"{name} is {value!r}; allowed is a number")
        object.__setattr__(config, name, float(value))


def _check(config: Any, name: str, fits: bool, allowed: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {getattr(config, name)!r}; allowed is {allowed}")


def _check_choices(config: Any) -> None:
    for name, allowed in CHOICES.items():
        if hasattr(config, name) and getattr(config, name) not in allowed:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}; allowed are {', '.join(map(repr, allowed))}"
            )


def _check_seed(name: str, seed: int) -> None:
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"{name} is {seed}; allowed is 0 to 2**32 - 1")


def grid(**values: Any) -> list[SAEConfig]:
    """Every combination of the given values, the last named varying fastest.

    Args:
      **values: fields of `SAEConfig`, each one value or an iterable of values. One value of
        `prefix_fractions` is a tuple, several a list of tuples.

    Returns:
      One config for each combination. `grid(d_sae=(250, 512), k=50, seed=range(5))` has 10.

    Raises:
      ValueError: if a field is unknown or a combination is not allowed.
    """
    known = [field.name for field in dataclasses.fields(SAEConfig)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown fields {unknown}; SAEConfig has {known}")
    axes = [list(value) if _is_axis(name, value) else [value] for name, value in values.items()]
    return [
        SAEConfig(**dict(zip(values, point, strict=True))) for point in itertools.product(*axes)
    ]


def _is_axis(name: str, value: Any) -> bool:
    if not isinstance(value, Iterable) or isinstance(value, str):
        return False
    return name != "prefix_fractions" or not all(isinstance(v, numbers.Real) for v in value)
