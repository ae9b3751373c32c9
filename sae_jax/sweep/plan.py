"""Which members train together: groups that fit memory and waste little on padding."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial

import jax

from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.data import DataSlice

# Largest share of a group's arithmetic that padding may take unless the user says
# otherwise. A CPU pays for padded work in full, and for another group with seconds of
# compilation: the published grid takes as long at 0 as at 0.1, and longer at 0.2. An
# accelerator that small members leave idle should bear more; there it is a judgment.
DEFAULT_MAX_PADDING = {"cpu": 0.05}
ACCELERATOR_MAX_PADDING = 0.5

# From how many latents, and how many for each one kept, the sparse path is faster;
# measured on CPU, where alone it is chosen unasked.
SPARSE_MIN_D_SAE = 1024
SPARSE_MIN_RATIO = {"float32": 40, "bfloat16": 80}

# Up to how many bytes of parameters and moments members train side by side on a CPU.
# Larger groups are up to 14 % faster one by one, when more of a member's state stays in
# the caches; small ones up to 34 % slower, when starting an operation is what costs.
SIDE_BY_SIDE_MAX_BYTES = 2**26

_FLOAT_BYTES = 4
# Copies of the parameters that a group keeps: themselves and two Adam moments.
_STATE_COPIES = 3
# Of the members that train at the same time: gradients, and one temporary.
_STEP_COPIES = 2


@dataclasses.dataclass(frozen=True)
class Group:
    """Members that one device program trains side by side.

    Attributes:
      members: indices into the sweep's configs.
      data_slice: (layer, position) of their activations.
      width: latents allocated for each of them, the largest d_sae among them.
      padding: share of the arithmetic spent on latents that only pad.
      num_bytes: estimate of device memory in training.
      flops_per_step: floating-point operations of one step of all members.
      sparse_k: the largest k among members that take the sparse path; `None` on the dense.
      one_by_one: whether they take turns, a whole epoch each.
    """

    members: tuple[int, ...]
    data_slice: DataSlice
    width: int
    padding: float
    num_bytes: int
    flops_per_step: int
    sparse_k: int | None = None
    one_by_one: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups of a sweep, in the order in which they train; prints as a table."""

    groups: tuple[Group, ...]

    def __str__(self) -> str:
        rows = [
            "group  members  order         width  path    layer  position  padding"
            "  memory [MiB]  GFLOP/step"
        ]
        for i, group in enumerate(self.groups):
            layer, position = ("-" if part is None else part for part in group.data_slice)
            path = "dense" if group.sparse_k is None else "sparse"
            order = "one by one" if group.one_by_one else "side by side"
            rows.append(
                f"{i:5d}  {len(group.members):7d}  {order:12}  {group.width:5d}"
                f"  {path:6}  {layer!s:>5}  {position!s:>8}  {group.padding:6.1%}"
                f"  {group.num_bytes / 2**20:12.1f}  {group.flops_per_step / 1e9:10.2f}"
            )
        return "\n".join(rows)


def plan_sweep(
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int]],
    train_config: TrainConfig,
) -> Plan:
    """Groups the members of a sweep.

    Members of a group share a data slice and a path. From the largest down, a member joins the open
    group unless its padding would exceed `max_padding` or the group `memory_budget`.

    Args:
      configs: the members.
      data_sizes: number of training samples and width of an activation, (n, d_in), by slice.
      train_config: for batch size, `path`, `max_padding` and `memory_budget`.

    Returns:
      The plan, the same for the same arguments on the same kind of device.

    Raises:
      ValueError: if a member alone exceeds the memory budget.
    """
    max_padding = train_config.max_padding
    if max_padding is None:
        max_padding = DEFAULT_MAX_PADDING.get(jax.default_backend(), ACCELERATOR_MAX_PADDING)
    budget = train_config.memory_budget or _device_memory()
    batch_size = train_config.batch_size

    alike: dict[tuple[DataSlice, bool], list[int]] = {}
    for i, config in enumerate(configs):
        key = config.data_slice, _takes_sparse_path(config, train_config)
        alike.setdefault(key, []).append(i)

    groups: list[Group] = []
    for (data_slice, sparse), members in alike.items():
        group_of = partial(
            _group,
            configs=configs,
            data_slice=data_slice,
            data_size=data_sizes[data_slice],
            batch_size=batch_size,
            sparse=sparse,
        )
        open_group: Group | None = None
        for i in sorted(members, key=lambda i: -configs[i].d_sae):
            before = open_group.members if open_group else ()
            wider = group_of((*before, i))
            if open_group and (wider.padding > max_padding or wider.num_bytes > budget):
                groups.append(open_group)
                wider = group_of((i,))
            if len(wider.members) == 1 and wider.num_bytes > budget:
                raise ValueError(
                    f"a member of d_sae {configs[i].d_sae} needs about {wider.num_bytes:,} bytes;"
                    f" memory_budget is {budget:,}"
                )
            open_group = wider
        if open_group:
            groups.append(open_group)
    return Plan(tuple(groups))


def _takes_sparse_path(config: SAEConfig, train_config: TrainConfig) -> bool:
    if train_config.path != "auto":
        return train_config.path == "sparse"
    min_ratio = SPARSE_MIN_RATIO[train_config.compute_dtype]
    large = config.d_sae >= max(SPARSE_MIN_D_SAE, min_ratio * config.k)
    return large and jax.default_backend() == "cpu"


def _group(
    members: tuple[int, ...],
    configs: Sequence[SAEConfig],
    data_slice: DataSlice,
    data_size: tuple[int, int],
    batch_size: int,
    sparse: bool,
) -> Group:
    num_samples, d_in = data_size
    sizes = [configs[i].d_sae for i in members]
    width = max(sizes)
    largest_k = max(configs[i].k for i in members)
    num_params = 2 * d_in * width + width + d_in
    # Pre-activations, latents and their gradients; reconstruction, error, its gradient.
    num_activations = batch_size * (4 * width + 3 * d_in)
    state_bytes = _FLOAT_BYTES * _STATE_COPIES * num_params * len(members)
    in_turn_on_cpu = len(members) == 1 or state_bytes > SIDE_BY_SIDE_MAX_BYTES
    one_by_one = sparse or (jax.default_backend() == "cpu" and in_turn_on_cpu)
    num_at_once = 1 if one_by_one else len(members)
    num_floats = (
        len(members) * _STATE_COPIES * num_params
        + num_at_once * (_STEP_COPIES * num_params + num_activations)
        + one_by_one * _STATE_COPIES * num_params
        + num_samples * d_in
    )
    # The encoder forward, and four products that the sparse path confines to k latents.
    columns = width + 4 * (largest_k if sparse else width)
    return Group(
        members=members,
        data_slice=data_slice,
        width=width,
        padding=1 - sum(sizes) / (width * len(sizes)),
        num_bytes=_FLOAT_BYTES * num_floats,
        flops_per_step=2 * batch_size * d_in * columns * len(members),
        sparse_k=largest_k if sparse else None,
        one_by_one=one_by_one,
    )


def _device_memory() -> int:
    """Bytes that a group may take unless the user says otherwise."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.8 * stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
