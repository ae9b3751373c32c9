"""Which members train together: groups that fit memory and waste little on padding."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sae_jax.activations.slices import DataSlice
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.metrics.evaluate import EVAL_BATCH_SIZE
from sae_jax.ops.matmul import ComputeDtype
from sae_jax.ops.tuning import (
    ACCELERATOR_MAX_PADDING,
    CORE_SCORING_FLOPS,
    CPU_SECONDS_PER_SCORING,
)
from sae_jax.sweep.kernels import (
    kernels_of,
    padding_share,
    seconds_per_latent,
    widths_of,
)
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.streamed import NUM_READERS
from sae_jax.sweep.widths import cheapest_widths

_FLOAT_BYTES = 4
# Validation samples are not known while a sweep is planned; of a usual split they are so many of
# the training samples.
VALIDATION_SHARE = 0.25

# Copies of the parameters that a group keeps: themselves and two Adam moments.
_STATE_COPIES = 3
# Of the members that train at the same time: gradients, and one temporary.
_STEP_COPIES = 2
# While a checkpoint is read, array after array: the state, and the last encoder or decoder of
# all members, half their parameters, three times more: as bytes of the file, which may be given
# back late, as read, and as copied to where training may reuse it.
_RESTORE_COPIES = 4.5
# While members are scored: the parameters of all, and those that go into the result.
_RESULT_COPIES = 2
# Of the members that are scored at the same time: their parameters, with directions.
_SCORE_COPIES = 1.5
# Share of the memory budget that samples may take and stay on the device.
_MAX_SAMPLES_SHARE = 0.5
# Streamed samples come in parts of so small a share of the memory budget, and so many parts are
# there at once: one is trained on, one lies ready, and readers are at the others.
_PARTS_PER_BUDGET = 128
_PARTS_AT_ONCE = 2 + NUM_READERS
# Numbers that the order of one sample takes while it is drawn.
_ORDER_COPIES = 5


@dataclasses.dataclass(frozen=True)
class Group:
    """Members that one program trains together.

    Attributes:
      members: indices into the sweep's configs.
      data_slice: (layer, position) of their activations.
      width: latents allocated for each of them, the largest d_sae among them, or somewhat more
        where they are divided among devices.
      padding: share of the work spent on latents that only pad.
      num_bytes: estimate of the memory that training, scoring or reading a checkpoint takes
        on each device, whichever takes most. As many validation samples are counted as
        training samples. On a CPU the group's results are part of it, those of others not.
      flops_per_step: floating-point operations of one step of all members.
      kernel: "dense", "firing_rows" or "selected_rows".
      k_max: the largest k among the members, for the kernel on selected rows; `None` for
        others, whose programs do not depend on it.
      sequential: whether they take turns, a whole epoch each, or one part of streamed samples.
      scored_at_once: how many of those on a device are scored side by side.
      scored_width: latents that each of them is scored with, so that groups of other widths share
        the programs; `None` for those that it trains with.
      steps_per_part: full batches that lie on the device at a time; `None` where all samples do.
    """

    members: tuple[int, ...]
    data_slice: DataSlice
    width: int
    padding: float
    num_bytes: int
    flops_per_step: int
    kernel: str = "dense"
    k_max: int | None = None
    sequential: bool = False
    scored_at_once: int = 1
    scored_width: int | None = None
    steps_per_part: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups of a sweep, in the order in which they train; prints as a table.

    Attributes:
      groups: the groups.
      offset_severity: norm of the training samples' mean over that of their standard deviations,
        by data slice, as far as it is known.
      devices: where they train, if on several devices.
      seconds: estimate of the time from the call of `train_sweep` to its result; `None` where it
        is not known.
    """

    groups: tuple[Group, ...]
    offset_severity: Mapping[DataSlice, float] = dataclasses.field(default_factory=dict)
    devices: str = ""
    seconds: float | None = None

    def __str__(self) -> str:
        rows = [self.devices] if self.devices else []
        rows += [
            "group  members  order         width  kernel         samples    layer  position"
            "  padding  memory [MiB]  GFLOP/step  offset severity"
        ]
        for i, group in enumerate(self.groups):
            layer, position = ("-" if part is None else part for part in group.data_slice)
            order = "in turns" if group.sequential else "side by side"
            samples = "on device" if group.steps_per_part is None else "streamed"
            severity = self.offset_severity.get(group.data_slice)
            rows.append(
                f"{i:5d}  {len(group.members):7d}  {order:12}  {group.width:5d}"
                f"  {group.kernel:13}  {samples:9}  {layer!s:>5}  {position!s:>8}"
                f"  {group.padding:7.1%}"
                f"  {group.num_bytes / 2**20:12.1f}  {group.flops_per_step / 1e9:10.2f}"
                f"  {'-' if severity is None else f'{severity:.2f}':>15}"
            )
        if self.seconds is not None:
            rows.append(f"estimated time: {self.seconds:.0f} s")
        return "\n".join(rows)


def plan_sweep(
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int, int]],
    train_config: TrainConfig,
    placement: Placement | None = None,
    offset_severity: Mapping[DataSlice, float] | None = None,
) -> Plan:
    """Groups the members of a sweep.

    Members of a group see the same batches, so they share a data slice and a data seed, and run
    the same program, so they share an architecture and a kernel. From the largest down, a
    member joins the open group unless its padding would exceed `max_padding` or the group
    `memory_budget`. Without `max_padding` a CPU, which pays for padding in full, weighs the time
    that padding takes against that of compiling another program.

    Args:
      configs: the members.
      data_sizes: number of training samples, width of a sample and of a target, (n, d_in,
        d_out), by slice.
      train_config: for epochs, batch size, `kernel`, `data_seed`, `max_padding`, `memory_budget`
        and `stream`.
      placement: where the groups are trained; JAX's first device if `None`.
      offset_severity: what the plan is to print of each data slice.

    Returns:
      The plan, the same for the same arguments on the same kind of device; on CPUs with loops in
      C++ another than on those without.

    Raises:
      ValueError: if a member alone exceeds the memory budget, or its architecture is not served
        by the kernel that is asked for.
    """
    placement = placement or Placement.default()
    max_padding = train_config.max_padding
    weighs = max_padding is None and placement.platform == "cpu"
    if max_padding is None:
        max_padding = 1.0 if weighs else ACCELERATOR_MAX_PADDING
    budget = train_config.memory_budget or placement.memory
    batch_size = train_config.batch_size

    kernels = kernels_of(configs, data_sizes, train_config, placement, may_join=weighs)
    alike: dict[_Key, list[int]] = {}
    for i, (config, kernel) in enumerate(zip(configs, kernels, strict=True)):
        key = config.data_slice, kernel, train_config.data_seed_of(config), config.template
        alike.setdefault(key, []).append(i)

    # Groups of other slices and other orders of the data run the same programs.
    sharing = Counter(
        _shared_program(key, members, configs, data_sizes) for key, members in alike.items()
    )
    dtype = train_config.compute_dtype
    any_group = partial(
        _group,
        configs=configs,
        batch_size=batch_size,
        dtype=dtype,
        budget=budget,
        placement=placement,
    )
    groups: list[Group] = []
    for key, members in alike.items():
        data_slice, kernel, _, _ = key
        widths: dict[int, int] = {}
        if weighs:
            widths = widths_of(
                *(kernel, dtype, [configs[i] for i in members]),
                seconds_per_latent(data_sizes[data_slice], train_config),
                sharing[_shared_program(key, members, configs, data_sizes)],
                placement.shape[0],
            )
        group_of = partial(
            any_group, data_slice=data_slice, data_size=data_sizes[data_slice], kernel=kernel
        )
        open_group: Group | None = None
        for i in sorted(members, key=lambda i: -configs[i].d_sae):
            if open_group:
                streamed = open_group.steps_per_part is not None
                wider = group_of((*open_group.members, i), streamed=streamed)
                largest = configs[open_group.members[0]].d_sae
                is_near = widths.get(configs[i].d_sae) == widths.get(largest)
                fits = wider.num_bytes <= _share(budget, placement, len(wider.members))
                if is_near and wider.padding <= max_padding and fits:
                    open_group = wider
                    continue
                groups.append(open_group)
            alone = partial(_alone, i, group_of, data_sizes[data_slice], train_config.stream)
            # As one of many that share the memory, if it fits so; else alone on what there is.
            of_many, of_one = (_share(budget, placement, n) for n in (len(members), 1))
            open_group = alone(of_many)
            if open_group.num_bytes > of_many:
                open_group = alone(of_one)
            if open_group.num_bytes > of_one:
                raise ValueError(
                    f"a member of d_sae {configs[i].d_sae} needs about {open_group.num_bytes:,}"
                    f" bytes; memory_budget is {of_one:,}"
                )
        if open_group:
            groups.append(open_group)
    if placement.platform == "cpu" and not placement.divides_members:
        groups = _scored_alike(groups, configs, data_sizes, budget, placement, any_group)
    devices = str(placement) if len(placement.devices) > 1 else ""
    return Plan(tuple(groups), offset_severity or {}, devices)


def _share(budget: int, placement: Placement, num_members: int) -> int:
    """Bytes of each device for a group of so many members."""
    return placement.for_members(num_members).each_of(budget)


_Key = tuple[DataSlice, str, int, SAEConfig]


def _shared_program(
    key: _Key,
    members: Sequence[int],
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int, int]],
) -> tuple[Any, ...]:
    """Equal for members of two keys that make groups of the same shapes."""
    data_slice, kernel, _, template = key
    sizes = tuple(sorted(configs[i].d_sae for i in members))
    return kernel, template, sizes, data_sizes[data_slice]


def _alone(
    i: int,
    group_of: Callable[..., Group],
    data_size: tuple[int, int, int],
    stream: bool | None,
    budget: int,
) -> Group:
    """A group of one member, whose samples are on the device if they may be and fit."""
    if stream is not None:
        return group_of((i,), streamed=stream)
    may_stay = _FLOAT_BYTES * 2 * _sample_floats(*data_size) <= _MAX_SAMPLES_SHARE * budget
    group = group_of((i,), streamed=False)
    return group if may_stay and group.num_bytes <= budget else group_of((i,), streamed=True)


def _scored_alike(
    groups: Sequence[Group],
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int, int]],
    budget: int,
    placement: Placement,
    any_group: Callable[..., Group],
) -> list[Group]:
    """The groups, some of them scored with more latents, so that others share their programs.

    Scoring takes so little time beside training that it bears more padding.
    """
    alike: dict[Any, list[Group]] = defaultdict(list)
    for group in groups:
        template = configs[group.members[0]].template
        devices = placement.for_members(len(group.members))
        if group.steps_per_part is None:
            alike[template, data_sizes[group.data_slice], devices.shape].append(group)
    scored: dict[tuple[int, ...], Group] = {}
    for (_, data_size, (num_devices, _, _)), some in alike.items():
        num_samples, d_in, d_out = data_size
        most = max(group.width for group in some)
        num_val = VALIDATION_SHARE * num_samples
        # Decoder rows are compared with each other, so that each costs as much as there are.
        flops = 2 * ((d_in + d_out) * num_val + 2 * d_out * most)
        turns = [
            group.width for group in some for _ in range(-(-len(group.members) // num_devices))
        ]
        widths = cheapest_widths(turns, flops / CORE_SCORING_FLOPS, CPU_SECONDS_PER_SCORING)
        for group in some:
            wider = any_group(
                group.members,
                data_slice=group.data_slice,
                data_size=data_size,
                kernel=group.kernel,
                streamed=False,
                scored_width=widths[group.width],
            )
            if wider.num_bytes <= _share(budget, placement, len(group.members)):
                scored[group.members] = wider
    return [scored.get(group.members, group) for group in groups]


def _group(
    members: tuple[int, ...],
    configs: Sequence[SAEConfig],
    data_slice: DataSlice,
    data_size: tuple[int, int, int],
    batch_size: int,
    kernel: str,
    dtype: ComputeDtype,
    budget: int,
    placement: Placement,
    streamed: bool,
    scored_width: int | None = None,
) -> Group:
    num_samples, d_in, d_out = data_size
    budget = _share(budget, placement, len(members))
    placement = placement.for_members(len(members))
    _, num_shares, num_parts = placement.shape
    sizes = [configs[i].d_sae for i in members]
    width = placement.width(max(sizes))
    largest_k = max(configs[i].k or 0 for i in members)
    state_copies = _STATE_COPIES + any(configs[i].weight_average > 0 for i in members)
    # On a CPU more of one member's state stays in the caches; elsewhere side by side every width of
    # the kernel on firing rows would be computed.
    sequential = kernel != "dense" or placement.platform == "cpu"

    # From here on, what one device has of everything.
    num_members = placement.members_each(len(members))
    num_latents = width // num_parts
    num_params = _num_params(num_latents, d_in, d_out)
    # The smaller batch that ends an epoch is whole on every device.
    num_rows = max(batch_size // num_shares, num_samples % batch_size)
    # Pre-activations, latents and their gradients; reconstruction, error, its gradient.
    num_activations = num_rows * (4 * num_latents + 3 * d_out)
    num_at_once = 1 if sequential else num_members
    scored_floats, steps_per_part = _sample_floats(num_samples, d_in, d_out), None
    # Of an epoch's batches, which are a copy, a device has a share.
    resident = scored_floats + -(-scored_floats // num_shares)
    if streamed:
        floats_per_step = _sample_floats(batch_size, d_in, d_out)
        num_fit = budget // (_PARTS_PER_BUDGET * _FLOAT_BYTES * floats_per_step)
        steps_per_part = min(max(num_fit, 1), max(num_samples // batch_size, 1))
        # The last part also takes what is left over for a smaller batch.
        part_floats = (steps_per_part + 1) * floats_per_step
        resident = _PARTS_AT_ONCE * part_floats + _ORDER_COPIES * num_samples
        scored_floats = max(part_floats, 2 * _sample_floats(EVAL_BATCH_SIZE, d_in, d_out))
    # A checkpoint of what lies on several cores is put together first.
    is_gathered = placement.platform == "cpu" and len(placement.devices) > 1
    training = (
        num_members * (1 + is_gathered) * state_copies * num_params
        + num_at_once * (_STEP_COPIES * num_params + num_activations)
        + sequential * state_copies * num_params
        + resident
    )
    restoring = int(num_members * _RESTORE_COPIES * num_params)
    # Pre-activations, latents, their magnitudes and what selection compares; cosines of as
    # many decoder rows; reconstruction, residual and their deviations.
    num_scored = num_latents if scored_width is None else scored_width
    num_score_activations = EVAL_BATCH_SIZE * (6 * num_scored + 4 * d_out)
    scoring_one = int(_SCORE_COPIES * _num_params(num_scored, d_in, d_out)) + num_score_activations
    if num_scored != num_latents:
        scoring_one += num_params  # As it was before it was widened.
    if num_parts > 1:
        scoring_one += width * d_out  # Directions are compared with those of all devices.
    results = num_members * _RESULT_COPIES * num_params + scored_floats
    num_fit = (budget // _FLOAT_BYTES - results) // scoring_one
    scored_at_once = 1 if sequential else min(max(num_fit, 1), num_members)
    num_floats = max(training, restoring, results + scored_at_once * scoring_one)
    # All latents enter the encoder's product, and these the other four: all with the dense
    # kernel, those that may fire, or the k of a sample.
    in_others = {
        "dense": [width] * len(members),
        "firing_rows": sizes,
        "selected_rows": [largest_k] * len(members),
    }[kernel]
    columns = sum(width + 4 * others for others in in_others)
    return Group(
        members=members,
        data_slice=data_slice,
        width=width,
        # What other kernels spare was measured on CPUs.
        padding=padding_share(
            kernel if placement.platform == "cpu" else "dense",
            *(dtype, [configs[i] for i in members], width),
        ),
        num_bytes=_FLOAT_BYTES * num_floats,
        flops_per_step=2 * batch_size * d_in * columns,
        kernel=kernel,
        k_max=largest_k if kernel == "selected_rows" else None,
        sequential=sequential,
        scored_at_once=scored_at_once,
        scored_width=None if scored_width == width else scored_width,
        steps_per_part=steps_per_part,
    )


def _num_params(num_latents: int, d_in: int, d_out: int) -> int:
    return (d_in + d_out + 1) * num_latents + d_out


def _sample_floats(num_samples: int, d_in: int, d_out: int) -> int:
    """What samples take on a device, targets of another width included."""
    return num_samples * (d_in if d_in == d_out else d_in + d_out)
