"""How long a planned sweep should take on a CPU."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sae_jax.activations.slices import DataSlice
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.ops import native
from sae_jax.ops.tuning import (
    CPU_FIRING_SHARE,
    CPU_HELP,
    CPU_SECONDS_OF_WORK,
    NATIVE_SECONDS_OF_WORK,
)
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import VALIDATION_SHARE, Group, Plan


class Work(NamedTuple):
    """What the seconds of a sweep grow with on a CPU, of the device that has most of it.

    Attributes:
      programs: groups of shapes of their own, each of which compiles what it trains with.
      firing_programs: those among them with the kernel on firing rows, which compiles longer.
      scoring_programs: different shapes in which members are scored.
      steps: steps of members.
      products: floating-point operations of their products in float32, but for those with rows that
        samples select.
      bfloat16_products: the same in bfloat16.
      row_products: those of products with rows that samples select.
      activations: pre-activations that latents are selected from.
      parameters: parameters that the optimizer updates.
      scores: floating-point operations of scoring.
    """

    programs: float = 0.0
    firing_programs: float = 0.0
    scoring_programs: float = 0.0
    steps: float = 0.0
    products: float = 0.0
    bfloat16_products: float = 0.0
    row_products: float = 0.0
    activations: float = 0.0
    parameters: float = 0.0
    scores: float = 0.0


def work_of(
    plan: Plan,
    configs: Sequence[SAEConfig],
    data_sizes: Mapping[DataSlice, tuple[int, int, int]],
    train_config: TrainConfig,
    placement: Placement,
) -> Work:
    """The work of all groups; arguments as of `plan_sweep`."""
    groups = [
        _work_of_group(group, configs, data_sizes[group.data_slice], train_config, placement)
        for group in plan.groups
    ]
    shapes, scored = set(), set()
    for group in plan.groups:
        num_members = len(group.members)
        alike = configs[group.members[0]].template, data_sizes[group.data_slice]
        shapes.add((group.kernel, group.width, num_members, *alike))
        devices = placement.for_members(num_members).shape
        scored.add((group.scored_width or group.width, group.steps_per_part, devices, *alike))
    compiled = Work(
        programs=len(shapes),
        firing_programs=sum(kernel == "firing_rows" for kernel, *_ in shapes),
        scoring_programs=len(scored),
    )
    return Work(*np.sum([compiled, *groups], axis=0).tolist())


def _work_of_group(
    group: Group,
    configs: Sequence[SAEConfig],
    data_size: tuple[int, int, int],
    train_config: TrainConfig,
    placement: Placement,
) -> Work:
    num_samples, d_in, d_out = data_size
    placement = placement.for_members(len(group.members))
    # The cores of a single device divide its products, and little else.
    help_of_others = CPU_HELP if len(placement.devices) == 1 else 1.0
    turns = placement.members_each(len(group.members))
    samples = turns * train_config.epochs * num_samples
    steps = turns * train_config.epochs * -(-num_samples // train_config.batch_size)
    mean_size = float(np.mean([configs[i].d_sae for i in group.members]))
    in_others = {
        "dense": group.width,
        "firing_rows": CPU_FIRING_SHARE * mean_size,
        "selected_rows": 0.0,
    }[group.kernel]
    selected = (group.k_max or 0) if group.kernel == "selected_rows" else 0
    products = 2 * samples * (d_in * group.width + 4 * d_out * in_others) / help_of_others
    in_bfloat16 = train_config.compute_dtype == "bfloat16"
    scored_width = group.scored_width or group.width
    scored = VALIDATION_SHARE * num_samples * (d_in + d_out) + scored_width * d_out
    return Work(
        steps=steps,
        products=0.0 if in_bfloat16 else products,
        bfloat16_products=products if in_bfloat16 else 0.0,
        row_products=8 * samples * d_out * selected / help_of_others,
        activations=samples * group.width,
        parameters=steps * (d_in + d_out) * group.width,
        scores=2 * turns * scored_width * scored,
    )


def seconds_of(work: Work) -> float:
    """Seconds from the call of `train_sweep` to its result.

    Cores of another kind than those that the constants are from may take half or twice as long. The
    speed of products in the moment of planning is left out: on shared cores it varies by a factor
    of two from one second to the next, and the seconds of a sweep do not.
    """
    seconds = NATIVE_SECONDS_OF_WORK if native.is_built() else CPU_SECONDS_OF_WORK
    return float(np.dot(work, seconds))
