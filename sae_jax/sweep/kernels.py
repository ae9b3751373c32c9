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
from sae_jax.sweep.widths import cheapest_widths


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
    joins = [may_join and _sparse() in _serving(config, placement) for config in configs]
    return _worth_compiling(kernels, configs, data_sizes, train_config, joins)


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
    dtype, d_sae, k = train_config.compute_dtype, config.d_sae, config.k
    if "selected_rows" in serving and k is not None:
        if native.is_built():
            pays = latents_of("selected_rows", dtype, d_sae, k) < d_sae
        else:
            pays = d_sae >= max(SELECTED_MIN_D_SAE, SELECTED_MIN_RATIO[dtype] * k)
        if pays:
            return "selected_rows"
    pays = dtype != "bfloat16" and d_in * d_sae >= FIRING_MIN_WEIGHTS and not native.is_built()
    return "firing_rows" if pays and "firing_rows" in serving else "dense"


def _sparse() -> str:
    """The kernel that members may join, since it hardly computes padding."""
    return "selected_rows" if native.is_built() else "firing_rows"


def _worth_compiling(
    kernels: Sequence[str],
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int, int]],
    train_config: TrainConfig,
    may_join: Sequence[bool],
) -> list[str]:
    """The kernel of each member with which compiling and training together take least.

    A kernel of its own pays only for members that train long enough. But one that hardly computes
    padding may train smaller members, too, which join larger ones.

    Args:
      kernels: the kernel that should train each member fastest.
      configs: the members.
      data_sizes: as in `plan_sweep`.
      train_config: for epochs and `data_seed`.
      may_join: which members may join larger ones; without any, no member is taken to be padded.
    """
    batches = [(config.data_slice, train_config.data_seed_of(config)) for config in configs]
    sparse = _sparse()
    spares = [kernel == sparse for kernel in kernels]
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, config in enumerate(configs):
        if spares[i] or (may_join[i] and kernels[i] == "dense"):
            alike[config.template, data_sizes[config.data_slice]].append(i)
    chosen = list(kernels)
    for (_, data_size), members in alike.items():
        # A group sees the same batches.
        joined = {batches[i] for i in members if spares[i]}
        choices = [
            {i: kernels[i] for i in members},
            dict.fromkeys(members, "dense"),
            {i: sparse if batches[i] in joined else "dense" for i in members},
        ]
        seconds_of = partial(
            _seconds,
            spares=spares,
            batches=batches,
            configs=configs,
            dtype=train_config.compute_dtype,
            seconds_per_latent=seconds_per_latent(data_size, train_config),
            are_padded=any(may_join),
        )
        for i, kernel in min(choices, key=seconds_of).items():
            chosen[i] = kernel
    return chosen


def _seconds(
    choice: Mapping[int, str],
    *,
    spares: Sequence[bool],
    batches: Sequence[Any],
    configs: Sequence[SAEConfig],
    dtype: ComputeDtype,
    seconds_per_latent: float,
    are_padded: bool,
) -> float:
    """What a CPU takes to compile and train members with a choice of kernels."""
    groups: dict[tuple[str, Any], list[int]] = defaultdict(list)
    latents, compiling = 0.0, 0.0
    for i, kernel in choice.items():
        config = configs[i]
        groups[kernel, batches[i]].append(config.d_sae)
        # A member that only joins others is not known to be spared anything.
        spared = kernel == "selected_rows" or spares[i]
        latents += latents_of(kernel if spared else "dense", dtype, config.d_sae, config.k or 0)
    # Groups of the same sizes share their programs.
    sharing = Counter((kernel, tuple(sorted(sizes))) for (kernel, _), sizes in groups.items())
    for (kernel, sizes), number in sharing.items():
        cost, program = padding_cost(kernel, dtype), program_seconds(kernel)
        widths = {size: size for size in sizes}
        if are_padded:
            widths = cheapest_widths(sizes, cost * seconds_per_latent, program / number)
        latents += number * cost * sum(widths[size] - size for size in sizes)
        compiling += program * len(set(widths.values()))
    return latents * seconds_per_latent + compiling


def latents_of(kernel: str, dtype: ComputeDtype, d_sae: int, k: int) -> float:
    """How many latents take the dense kernel as long as a member takes another kernel on a CPU."""
    if kernel == "firing_rows":
        return (1.0 - FIRING_GAIN) * d_sae
    if kernel == "selected_rows" and native.is_built():
        of_each, of_selected = NATIVE_SELECTED_COST[dtype]
        return of_each * d_sae + of_selected * k
    return d_sae


def padding_cost(kernel: str, dtype: ComputeDtype) -> float:
    """What a padding latent costs in relation to one of the dense kernel."""
    if kernel == "firing_rows":
        return FIRING_PADDING_COST
    return latents_of(kernel, dtype, 1, 0)


def program_seconds(kernel: str) -> float:
    """Seconds that the programs which train members of one width take to compile on a CPU."""
    return (NATIVE_SECONDS_PER_PROGRAM if native.is_built() else CPU_SECONDS_PER_PROGRAM)[kernel]


def seconds_per_latent(data_size: tuple[int, int, int], train_config: TrainConfig) -> float:
    """What a CPU takes to train a latent of the dense kernel."""
    num_samples, d_in, d_out = data_size
    flops = 2 * (d_in + 4 * d_out) * num_samples * train_config.epochs
    return flops / CPU_FLOPS[train_config.compute_dtype]
