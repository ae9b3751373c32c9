"""Which kernel trains each member of a sweep: the fastest, as far as compiling it pays."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sae_jax.activations.slices import DataSlice
from sae_jax.architectures.registry import architecture_of
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.ops.tuning import (
    CPU_FLOPS,
    CPU_SECONDS_PER_PROGRAM,
    FIRING_GAIN,
    FIRING_MIN_WEIGHTS,
    FIRING_PADDING_COST,
    FIRING_SECONDS,
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
    joins = [may_join and "firing_rows" in _serving(config, placement) for config in configs]
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
    dtype, k = train_config.compute_dtype, config.k
    if (
        "selected_rows" in serving
        and k is not None
        and config.d_sae >= max(SELECTED_MIN_D_SAE, SELECTED_MIN_RATIO[dtype] * k)
    ):
        return "selected_rows"
    pays = dtype != "bfloat16" and d_in * config.d_sae >= FIRING_MIN_WEIGHTS
    return "firing_rows" if pays and "firing_rows" in serving else "dense"


def _worth_compiling(
    kernels: Sequence[str],
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int, int]],
    train_config: TrainConfig,
    may_join: Sequence[bool],
) -> list[str]:
    """The kernel of each member with which compiling and training together take least.

    The kernel on firing rows compiles longer, and pays for itself only in members that train long
    enough. But it hardly computes padding, so that smaller members may join larger ones.

    Args:
      kernels: the kernel that should train each member fastest.
      configs: the members.
      data_sizes: as in `plan_sweep`.
      train_config: for epochs and `data_seed`.
      may_join: which members may join larger ones on firing rows; without any, no member is taken
        to be padded.
    """
    batches = [(config.data_slice, train_config.data_seed_of(config)) for config in configs]
    fires = [kernel == "firing_rows" for kernel in kernels]
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, config in enumerate(configs):
        if fires[i] or (may_join[i] and kernels[i] == "dense"):
            alike[config.template, data_sizes[config.data_slice]].append(i)
    chosen = list(kernels)
    for (_, data_size), members in alike.items():
        # A group sees the same batches.
        joined = {batches[i] for i in members if fires[i]}
        choices = [
            {i: kernels[i] for i in members},
            dict.fromkeys(members, "dense"),
            {i: "firing_rows" if batches[i] in joined else "dense" for i in members},
        ]
        seconds_of = partial(
            _seconds,
            fires=fires,
            batches=batches,
            configs=configs,
            seconds_per_latent=flops_per_latent(data_size) * train_config.epochs / CPU_FLOPS,
            are_padded=any(may_join),
        )
        for i, kernel in min(choices, key=seconds_of).items():
            chosen[i] = kernel
    return chosen


def _seconds(
    choice: Mapping[int, str],
    *,
    fires: Sequence[bool],
    batches: Sequence[Any],
    configs: Sequence[SAEConfig],
    seconds_per_latent: float,
    are_padded: bool,
) -> float:
    """What a CPU takes to compile and train members with a choice of kernels."""
    sizes: dict[tuple[str, Any], list[int]] = defaultdict(list)
    spared = 0.0
    for i, kernel in choice.items():
        sizes[kernel, batches[i]].append(configs[i].d_sae)
        if fires[i] and kernel == "firing_rows":
            spared += FIRING_GAIN * configs[i].d_sae
    # Groups of the same sizes share their programs.
    sharing = Counter((kernel, tuple(sorted(some))) for (kernel, _), some in sizes.items())
    latents, compiling = -spared, 0.0
    for (kernel, some), number in sharing.items():
        cost, program = padding_cost(kernel), program_seconds(kernel)
        widths = {size: size for size in some}
        if are_padded:
            widths = cheapest_widths(some, cost * seconds_per_latent, program / number)
        latents += number * sum(size + cost * (widths[size] - size) for size in some)
        compiling += program * len(set(widths.values()))
    return latents * seconds_per_latent + compiling


def padding_cost(kernel: str) -> float:
    """What a padding latent costs in relation to others."""
    return FIRING_PADDING_COST if kernel == "firing_rows" else 1.0


def program_seconds(kernel: str) -> float:
    """Seconds that the programs which train members of one width take to compile on a CPU."""
    return CPU_SECONDS_PER_PROGRAM + (FIRING_SECONDS if kernel == "firing_rows" else 0.0)


def flops_per_latent(data_size: tuple[int, int, int]) -> int:
    """Floating-point operations that a latent costs in an epoch of dense products."""
    num_samples, d_in, d_out = data_size
    return 2 * (d_in + 4 * d_out) * num_samples
