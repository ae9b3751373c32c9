"""Which members train together: groups that fit memory and waste little on padding."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax

from sae_jax.activations.slices import DataSlice
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.sweep.memory import memory_limit

# Largest share of a group's arithmetic that padding may take unless the user says
# otherwise. A CPU pays for padded work in full, and for another group with seconds of
# compilation: the published grid takes as long at 0 as at 0.1, and longer at 0.2. An
# accelerator that small members leave idle should bear more; there it is a judgment.
DEFAULT_MAX_PADDING = {"cpu": 0.05}
ACCELERATOR_MAX_PADDING = 0.5

# From how many latents, and how many for each one kept, the sparse path is faster or as fast;
# measured on CPU, where alone a path other than the dense one is chosen unasked.
SPARSE_MIN_D_SAE = 1024
SPARSE_MIN_RATIO = {"float32": 64, "tf32": 64, "bfloat16": 80}

# From how many weights of an encoder the compact path is faster than the dense one in float32,
# on real activations. bfloat16 products leave less to save: there a step gained up to 1.3 times
# at d_sae / k = 20 and lost a tenth at 5, so it is chosen only by name.
COMPACT_MIN_WEIGHTS = 200_000

# What a padding latent costs there in relation to others: it never fires, but is encoded and
# optimized, which takes about a third of the time of a step.
COMPACT_PADDING_COST = 1 / 3

# Up to how many bytes of parameters and moments members train side by side on a CPU.
# Larger groups are up to 14 % faster one by one, when more of a member's state stays in
# the caches; small ones up to 34 % slower, when starting an operation is what costs.
SIDE_BY_SIDE_MAX_BYTES = 2**26

# Validation samples at a time.
EVAL_BATCH_SIZE = 512

_FLOAT_BYTES = 4
# Copies of the parameters that a group keeps: themselves and two Adam moments.
_STATE_COPIES = 3
# Of the members that train at the same time: gradients, and one temporary.
_STEP_COPIES = 2
# While a checkpoint is read, array after array: the state, and the last encoder or decoder of
# all members, half their parameters, twice more.
_RESTORE_COPIES = 4
# While members are scored: the parameters of all, and those that go into the result.
_RESULT_COPIES = 2
# Of the members that are scored at the same time: their parameters, with directions.
_SCORE_COPIES = 1.5


@dataclasses.dataclass(frozen=True)
class Group:
    """Members that one device program trains side by side.

    Attributes:
      members: indices into the sweep's configs.
      data_slice: (layer, position) of their activations.
      width: latents allocated for each of them, the largest d_sae among them.
      padding: share of the work spent on latents that only pad.
      num_bytes: estimate of the memory that training, scoring or reading a checkpoint takes
        on the device, whichever takes most. As many validation samples are counted as
        training samples. On a CPU the group's results are part of it, those of others not.
      flops_per_step: floating-point operations of one step of all members.
      path: "dense", "compact" or "sparse".
      k_max: the largest k among the members, on the sparse path; `None` on others, whose
        programs do not depend on it.
      one_by_one: whether they take turns, a whole epoch each.
      scored_at_once: how many of them are scored side by side.
    """

    members: tuple[int, ...]
    data_slice: DataSlice
    width: int
    padding: float
    num_bytes: int
    flops_per_step: int
    path: str = "dense"
    k_max: int | None = None
    one_by_one: bool = False
    scored_at_once: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups of a sweep, in the order in which they train; prints as a table."""

    groups: tuple[Group, ...]

    def __str__(self) -> str:
        rows = [
            "group  members  order         width  path     layer  position  padding"
            "  memory [MiB]  GFLOP/step"
        ]
        for i, group in enumerate(self.groups):
            layer, position = ("-" if part is None else part for part in group.data_slice)
            order = "one by one" if group.one_by_one else "side by side"
            rows.append(
                f"{i:5d}  {len(group.members):7d}  {order:12}  {group.width:5d}"
                f"  {group.path:7}  {layer!s:>5}  {position!s:>8}  {group.padding:6.1%}"
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

    alike: dict[tuple[DataSlice, str], list[int]] = {}
    for i, config in enumerate(configs):
        path = _path(config, data_sizes[config.data_slice][1], train_config)
        alike.setdefault((config.data_slice, path), []).append(i)

    groups: list[Group] = []
    for (data_slice, path), members in alike.items():
        group_of = partial(
            _group,
            configs=configs,
            data_slice=data_slice,
            data_size=data_sizes[data_slice],
            batch_size=batch_size,
            path=path,
            budget=budget,
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


def _path(config: SAEConfig, d_in: int, train_config: TrainConfig) -> str:
    """The path that a member asks for, or the one that should be fastest for it."""
    if train_config.path != "auto":
        return train_config.path
    if jax.default_backend() != "cpu":
        return "dense"
    dtype = train_config.compute_dtype
    if config.d_sae >= max(SPARSE_MIN_D_SAE, SPARSE_MIN_RATIO[dtype] * config.k):
        return "sparse"
    pays = dtype != "bfloat16" and d_in * config.d_sae >= COMPACT_MIN_WEIGHTS
    return "compact" if pays else "dense"


def _group(
    members: tuple[int, ...],
    configs: Sequence[SAEConfig],
    data_slice: DataSlice,
    data_size: tuple[int, int],
    batch_size: int,
    path: str,
    budget: int,
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
    one_by_one = path != "dense" or (jax.default_backend() == "cpu" and in_turn_on_cpu)
    num_at_once = 1 if one_by_one else len(members)
    data_floats = num_samples * d_in
    training = (
        len(members) * _STATE_COPIES * num_params
        + num_at_once * (_STEP_COPIES * num_params + num_activations)
        + one_by_one * _STATE_COPIES * num_params
        + data_floats
    )
    restoring = len(members) * _RESTORE_COPIES * num_params
    # Pre-activations, latents, their magnitudes and what selection compares; cosines of as
    # many decoder rows; reconstruction, residual and their deviations.
    num_score_activations = EVAL_BATCH_SIZE * (6 * width + 4 * d_in)
    scoring_one = int(_SCORE_COPIES * num_params) + num_score_activations
    results = len(members) * _RESULT_COPIES * num_params + data_floats
    num_fit = (budget // _FLOAT_BYTES - results) // scoring_one
    scored_at_once = 1 if one_by_one else min(max(num_fit, 1), len(members))
    num_floats = max(training, restoring, results + scored_at_once * scoring_one)
    # All latents enter the encoder's product, and these the other four: all on the dense
    # path, those that may fire on the compact one, the k of a sample on the sparse one.
    in_others = {
        "dense": [width] * len(members),
        "compact": sizes,
        "sparse": [largest_k] * len(members),
    }[path]
    columns = sum(width + 4 * others for others in in_others)
    padding_cost = COMPACT_PADDING_COST if path == "compact" else 1
    return Group(
        members=members,
        data_slice=data_slice,
        width=width,
        padding=padding_cost * (1 - sum(sizes) / (width * len(sizes))),
        num_bytes=_FLOAT_BYTES * num_floats,
        flops_per_step=2 * batch_size * d_in * columns,
        path=path,
        k_max=largest_k if path == "sparse" else None,
        one_by_one=one_by_one,
        scored_at_once=scored_at_once,
    )


def _device_memory() -> int:
    """Bytes that a group may take unless the user says otherwise."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.8 * stats["bytes_limit"])
    return memory_limit() // 2
