"""Which kernel trains each member of a sweep: the fastest, as far as compiling it pays."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sae_jax.activations.slices import DataSlice
from sae_jax.architectures.registry import architecture_of
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.ops import native
from sae_jax.ops.matmul import ComputeDtype
from sae_jax.ops.tuning import (
    CPU_FLOPS,
    CPU_SECONDS_PER_PROGRAM,
    FIRING_GAIN,
    FIRING_MIN_WEIGHTS,
    FIRING_PADDING_COST,
    NATIVE_SECONDS_PER_PROGRAM,
    NATIVE_SELECTED_COST,
    SELECTED_MIN_D_SAE,
    SELECTED_MIN_RATIO,
)
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.widths import cheapest_widths, num_idle


def kernels_of(
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int, int]],
    train_config: TrainConfig,
    placement: Placement,
    *,
    may_join: bool,
) -> list[str]:
    """The kernel of each member.

    Args:
      configs: the members.
      data_sizes: as in `plan_sweep`.
      train_config: for `kernel`, `data_seed` and epochs.
      placement: where they are trained.
      may_join: whether small members may be padded to join larger ones, where that takes less
        time than compiling another program.

    Raises:
      ValueError: if a member is not served by the kernel that is asked for.
    """
    kernels = [
        _kernel(config, data_sizes[config.data_slice][1], train_config, placement)
        for config in configs
    ]
    if train_config.kernel != "auto":
        return kernels
    serves = [_sparse() in _serving(config, placement) for config in configs]
    return _worth_compiling(
        kernels, configs, data_sizes, train_config, placement, serves=serves, may_join=may_join
    )


def _serving(config: SAEConfig, placement: Placement) -> tuple[str, ...]:
    """The kernels, beside the dense one, that compute what a member trains on."""
    # What an auxiliary loss adds needs all latents, and the first k of many may be all of them.
    if config.aux_coefficient or config.k_anneal_steps:
        return ()
    # Rows that fire or are selected would lie on other devices.
    return () if placement.divides_members else architecture_of(config).kernels


def _kernel(config: SAEConfig, d_in: int, train_config: TrainConfig, placement: Placement) -> str:
    """The kernel that is asked for, or the one that should be fastest for a member."""
    serving = _serving(config, placement)
    if train_config.kernel != "auto":
        if train_config.kernel not in ("dense", *serving):
            where = f" on {placement}" if placement.divides_members else ""
            raise ValueError(
                f"kernel is {train_config.kernel!r}; {config}{where} is served by 'auto', 'dense'"
                + "".join(f", {name!r}" for name in serving)
            )
        return train_config.kernel
    if placement.platform != "cpu":
        return "dense"
    dtype, d_sae = train_config.compute_dtype, config.d_sae
    k = config.k if "selected_rows" in serving else None
    if k is not None and native.is_built():
        is_faster = latents_of("selected_rows", dtype, config) < d_sae
        return "selected_rows" if is_faster else "dense"
    if k is not None and d_sae >= max(SELECTED_MIN_D_SAE, SELECTED_MIN_RATIO[dtype] * k):
        return "selected_rows"
    pays = dtype != "bfloat16" and d_in * d_sae >= FIRING_MIN_WEIGHTS
    return "firing_rows" if pays and "firing_rows" in serving else "dense"


def _sparse() -> str:
    """The kernel that members may join, since it hardly computes padding."""
    return "selected_rows" if native.is_built() else "firing_rows"


def _worth_compiling(
    kernels: Sequence[str],
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int, int]],
    train_config: TrainConfig,
    placement: Placement,
    *,
    serves: Sequence[bool],
    may_join: bool,
) -> list[str]:
    """The kernel of each member with which compiling and training together take least.

    A kernel of its own pays only for members that train long enough. But one that hardly computes
    padding may train smaller members, too, which join larger ones.

    Args:
      kernels: the kernel that should train each member fastest.
      configs: the members.
      data_sizes: as in `plan_sweep`.
      train_config: for epochs and `data_seed`.
      placement: where they are trained.
      serves: whether such a kernel computes what a member trains on.
      may_join: whether members may join larger ones; else none is taken to be padded.
    """
    batches = [(config.data_slice, train_config.data_seed_of(config)) for config in configs]
    sparse = _sparse()
    is_sparse = [kernel == sparse for kernel in kernels]
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, config in enumerate(configs):
        if is_sparse[i] or (serves[i] and may_join and kernels[i] == "dense"):
            alike[config.template, data_sizes[config.data_slice]].append(i)
    chosen = list(kernels)
    for (_, data_size), members in alike.items():
        # A group sees the same batches.
        joined = {batches[i] for i in members if is_sparse[i]}
        choices = [
            {i: kernels[i] for i in members},
            dict.fromkeys(members, "dense"),
            {i: sparse if batches[i] in joined else "dense" for i in members},
        ]
        seconds_of = partial(
            _seconds,
            is_sparse=is_sparse,
            batches=batches,
            configs=configs,
            dtype=train_config.compute_dtype,
            seconds_per_latent=seconds_per_latent(data_size, train_config),
            at_once=placement.shape[0],
            are_padded=may_join,
        )
        for i, kernel in min(choices, key=seconds_of).items():
            chosen[i] = kernel
    return chosen


def _seconds(
    choice: Mapping[int, str],
    *,
    is_sparse: Sequence[bool],
    batches: Sequence[Any],
    configs: Sequence[SAEConfig],
    dtype: ComputeDtype,
    seconds_per_latent: float,
    at_once: int,
    are_padded: bool,
) -> float:
    """What a CPU takes to compile and train members with a choice of kernels."""
    groups: dict[tuple[str, Any], list[SAEConfig]] = defaultdict(list)
    latents, compiling = 0.0, 0.0
    for i, kernel in choice.items():
        groups[kernel, batches[i]].append(configs[i])
        # A member that only joins those on firing rows is not known to be spared anything.
        is_spared = kernel != "firing_rows" or is_sparse[i]
        latents += latents_of(kernel if is_spared else "dense", dtype, configs[i])
    # Groups of the same sizes share their programs.
    sharing = Counter(_sizes(kernel, some) for (kernel, _), some in groups.items())
    for (kernel, _), some in groups.items():
        sizes = [config.d_sae for config in some]
        number = sharing[_sizes(kernel, some)]
        widths = {size: size for size in sizes}
        if are_padded:
            widths = widths_of(kernel, dtype, some, seconds_per_latent, number, at_once)
        latents += padding_cost(kernel, dtype) * sum(widths[size] - size for size in sizes)
        for width in set(widths.values()):
            num_members = sum(widths[size] == width for size in sizes)
            latents += _idle_cost(kernel, dtype, some) * width * num_idle(num_members, at_once)
        compiling += program_seconds(kernel) / number * len(set(widths.values()))
    return latents * seconds_per_latent + compiling


def _sizes(kernel: str, members: Sequence[SAEConfig]) -> tuple[str, tuple[int, ...]]:
    return kernel, tuple(sorted(config.d_sae for config in members))


def widths_of(
    kernel: str,
    dtype: ComputeDtype,
    members: Sequence[SAEConfig],
    seconds_per_latent: float,
    num_sharing: int,
    at_once: int,
) -> dict[int, int]:
    """The width, by d_sae, with which a CPU trains members of one kernel in the least time.

    Args:
      kernel: their kernel.
      dtype: how products are computed.
      members: the members, which see the same batches.
      seconds_per_latent: see the function of that name.
      num_sharing: how many groups of such sizes share their programs.
      at_once: how many members train at a time.
    """
    return cheapest_widths(
        [config.d_sae for config in members],
        padding_cost(kernel, dtype) * seconds_per_latent,
        program_seconds(kernel) / num_sharing,
        at_once,
        _idle_cost(kernel, dtype, members) * seconds_per_latent,
    )


def _idle_cost(kernel: str, dtype: ComputeDtype, members: Sequence[SAEConfig]) -> float:
    """What a latent of a member costs on average, in relation to one of the dense kernel."""
    latents = sum(latents_of(kernel, dtype, config) for config in members)
    return latents / sum(config.d_sae for config in members)


def latents_of(kernel: str, dtype: ComputeDtype, config: SAEConfig) -> float:
    """How many latents take the dense kernel as long as a member takes another kernel on a CPU."""
    if kernel == "firing_rows":
        return (1.0 - FIRING_GAIN) * config.d_sae
    if kernel == "selected_rows" and native.is_built():
        of_each, of_selected = NATIVE_SELECTED_COST[dtype]
        return of_each * config.d_sae + of_selected * (config.k or 0)
    return config.d_sae


def padding_cost(kernel: str, dtype: ComputeDtype) -> float:
    """What a padding latent costs in relation to one of the dense kernel."""
    if kernel == "firing_rows":
        return FIRING_PADDING_COST
    return (
        NATIVE_SELECTED_COST[dtype][0] if kernel == "selected_rows" and native.is_built() else 1.0
    )


def padding_share(
    kernel: str, dtype: ComputeDtype, members: Sequence[SAEConfig], width: int
) -> float:
    """The share of the time of members of one width that latents take which only pad."""
    padding = sum(width - config.d_sae for config in members) * padding_cost(kernel, dtype)
    return padding / (padding + sum(latents_of(kernel, dtype, config) for config in members))


def program_seconds(kernel: str) -> float:
    """Seconds that the programs which train members of one width take to compile on a CPU."""
    return (NATIVE_SECONDS_PER_PROGRAM if native.is_built() else CPU_SECONDS_PER_PROGRAM)[kernel]


def seconds_per_latent(data_size: tuple[int, int, int], train_config: TrainConfig) -> float:
    """What a CPU takes to train a latent of the dense kernel."""
    num_samples, d_in, d_out = data_size
    flops = 2 * (d_in + 4 * d_out) * num_samples * train_config.epochs
    return flops / CPU_FLOPS[train_config.compute_dtype]
