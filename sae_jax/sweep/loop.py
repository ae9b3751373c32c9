"""Training a sweep: plan, train each group epoch by epoch, score its members."""

import dataclasses
import itertools
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.activations.matrix import Live
from sae_jax.activations.slices import ActivationData, DataSlice, of_slice
from sae_jax.architectures.functional import folded
from sae_jax.architectures.registry import architecture_of
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.sweep.ahead import CompilingAhead, Needs
from sae_jax.sweep.backends import prepare_backends
from sae_jax.sweep.checkpoints import SweepCheckpoints
from sae_jax.sweep.compilations import counted_compilations
from sae_jax.sweep.epochs import source_of, train_group
from sae_jax.sweep.estimate import seconds_of, work_of
from sae_jax.sweep.events import Announcer, Callback
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.memory import give_back_free_memory
from sae_jax.sweep.normalization import center_of, mean_and_scale
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import Plan, plan_sweep
from sae_jax.sweep.preemption import Preempted, preemption_notice
from sae_jax.sweep.processes import (
    check_only,
    check_same,
    check_sees,
    enter,
    is_alone,
    is_main,
    of_main,
)
from sae_jax.sweep.progress import shown_progress
from sae_jax.sweep.provenance import described
from sae_jax.sweep.result import (
    PARTIAL_NAME,
    Member,
    SweepResult,
    check_data,
    check_free,
    writing_sweep,
)
from sae_jax.sweep.samples import Normalized, SweepSamples
from sae_jax.sweep.scores import (
    members_of_group,
    scalars,
    scores_of_group,
    warn_of_outliers,
)
from sae_jax.sweep.step import Optimizer, adam
from sae_jax.sweep.streamed import Streamed


def train_sweep(
    configs: Sequence[SAEConfig],
    train: ActivationData,
    val: ActivationData,
    train_config: TrainConfig | None = None,
    *,
    targets: ActivationData | None = None,
    val_targets: ActivationData | None = None,
    target_weights: Sequence[float] | None = None,
    optimizer: Optimizer = adam,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    data: Mapping[str, Any] | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> SweepResult:
    """Trains every member and scores it on the validation samples.

    A member's parameters are those that it would get alone, up to the order of
    floating-point sums: its random numbers depend on its own config, and all members of a
    data slice see the same batches.

    Several processes that `jax.distributed.initialize` has joined train one sweep if all call this
    with the same arguments. Process 0 alone writes and calls `callbacks`; all get the result.

    Args:
      configs: the members.
      train: training activations: an array `[n, D]`, a selection of a store, a sequence of
        selections, or a mapping from (layer, position) to arrays. What would take too much memory
        is read as it is needed, as `TrainConfig.stream` says. Selections of a `LiveStore` are
        trained on while they are extracted, and removed.
      val: validation activations, likewise.
      train_config: what the members share.
      targets: what is to be reconstructed from each training sample, row by row, if not the
        sample itself: the members are then transcoders. Where samples and targets are several
        layers side by side, as `side_by_side` puts them, they are crosscoders.
      val_targets: the same of the validation samples.
      target_weights: weight of each of so many equal parts of a target in the loss, such as
        one a layer.
      optimizer: makes the optimizer of a learning rate, which is traced, as
        `lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))` does; Adam
        as in the published experiment unless named. It is called once for each program that
        is compiled, so it has to be one function and not a new one at every call. An update
        of a zero gradient at a zero parameter has to be zero, or padding would not stay so.
      checkpoint_dir: where to keep checkpoints. If there are some of this sweep already,
        training goes on from the last one and ends with the parameters, history and
        metrics of an uninterrupted run. On SIGTERM the epoch in progress, or the part of it
        that is streamed, is finished and saved, and `Preempted` is raised.
      checkpoint_every: epochs from one checkpoint to the next, besides the last of each
        group; `None` for as many as keep the making of checkpoints below 5 % of the time.
        Results do not depend on it.
      output: folder to save the sweep to, as `SweepResult.save` would. Members are written as
        their group is done, and read when they are asked for: a sweep then needs no more
        memory than its largest group.
      overwrite: whether to replace a sweep in `output`.
      data: JSON values that say where the activations came from, kept with the result beside
        what selections say of themselves.
      progress: whether to show progress: a bar on a terminal, else one line an epoch.
      callbacks: functions of an `Event`, such as `tensorboard.log_to` gives; what they raise
        ends the sweep.

    Returns:
      The trained members in the order of `configs`.

    Raises:
      ValueError: if there are no members, or one twice; activations are not finite float
        arrays `[n, D]` of one width; a member's data slice is not among them, or does not
        fit memory; targets are of other numbers of rows, or a config cannot be a transcoder;
        live samples would be needed twice, or nobody extracts them;
        `data` is not JSON; `output` holds something; or the checkpoints are of
        another sweep or of other data; or processes were given other inputs, or see other folders.
      Preempted: after SIGTERM, when `checkpoint_dir` holds what is finished.
    """
    prepare_backends()
    train_config = train_config or TrainConfig()
    check_data(data or {})
    data = described(train, val) | dict(data or {})
    if output is not None:
        of_main(partial(check_free, Path(output), overwrite))
    samples = SweepSamples.of(train, val, targets, val_targets, target_weights)
    samples.check_resumable(checkpoint_dir)
    train_config = samples.fitted(train_config)
    configs = _resolved(configs, samples)
    sizes = samples.planned_sizes(train_config.batch_size)
    samples.check_values()
    for data_slice in samples.constant:
        warnings.warn(
            f"all rows of val{of_slice(data_slice)} are equal: fvu and r2 are undefined there,"
            " and come out as NaN",
            stacklevel=2,
        )
    if samples.live is not None:
        check_only("live samples")
    check_same({"configs": configs, "train_config": train_config, "sizes": samples.sizes})
    placement = Placement.of(train_config, configs)
    budget = of_main(lambda: train_config.memory_budget or placement.memory)
    planned = dataclasses.replace(train_config, memory_budget=budget)
    plan = plan_sweep(configs, sizes, planned, placement, samples.offset_severity)
    members: dict[int, Member] = {}
    warned: set[DataSlice] = set()
    with ExitStack() as stack:
        checkpoints = preempted = None
        if checkpoint_dir is not None:
            identity = _identity(configs, train_config, optimizer, samples)
            checkpoints = stack.enter_context(
                SweepCheckpoints.open(checkpoint_dir, identity, plan, checkpoint_every)
            )
            plan = checkpoints.plan
            preempted = stack.enter_context(preemption_notice())
        if samples.live is not None:
            stack.enter_context(samples.live.following(preempted))
        if progress and is_main():
            display = shown_progress(len(configs), train_config.epochs)
            callbacks = [stack.enter_context(display), *callbacks]
        work = [
            float(group.flops_per_step * samples.sizes[group.data_slice][0])
            for group in plan.groups
        ]
        listeners = callbacks if is_main() else ()
        announcer = Announcer(plan.groups, work, configs, train_config.epochs, listeners)
        if output is not None:
            writer = enter(stack, writing_sweep(output, overwrite=overwrite))
            check_sees(Path(output) / PARTIAL_NAME)  # Made just now, in the folder itself.

        def keep(i: int, member: Member) -> None:
            if output is None:
                members[i] = member
            else:
                of_main(lambda: writer.write(i, member))

        needs = [
            Needs.of(group, configs, train_config, optimizer, placement, samples)
            for group in plan.groups
        ]
        compilations = stack.enter_context(counted_compilations())
        ahead = stack.enter_context(CompilingAhead(needs if is_alone() else (), compilations))
        windows = _windows(samples.live)
        begun: dict[int, tuple[Normalized, float, np.ndarray]] = {}
        # Every group trains on a window of live samples before it goes; its state waits in its
        # checkpoint meanwhile.
        for window, (i, group) in itertools.product(windows, enumerate(plan.groups)):
            is_last_window = window == windows[-1]
            if preempted is not None and preempted.is_set():
                raise Preempted(f"stopped by SIGTERM after {i} of {len(plan.groups)} groups")
            group_configs, program = needs[i].configs, needs[i].program
            data_slice, template = group.data_slice, program.template
            placed = program.placement
            streamed = group.steps_per_part is not None
            if i not in begun:
                given = samples.normalized(data_slice, template.normalize, streamed=streamed)
                center = center_of(given.x if given.y is None else given.y, template.b_dec_init)
                begun[i] = given, mean_and_scale(given.x)[1], center
            given, scale, center = begun.pop(i) if is_last_window else begun[i]
            num_samples, d_in = given.x.shape
            hyper = placed.spread(
                hyperparameters(group_configs, train_config, num_samples, d_in, scale)
            )
            source = source_of(given.x, given.y, group, train_config.batch_size, placed)
            last_part = train_config.epochs * source.parts_per_epoch
            if samples.live and isinstance(source, Streamed):
                last_part = source.last_part(window)
            ahead.await_programs(i, "initializing", "training")
            params, kept, losses = train_group(
                group,
                program,
                hyper,
                center,
                train_config.data_seed_of(group_configs[0]),
                source,
                train_config,
                last_part,
                checkpoints.group(i) if checkpoints else None,
                preempted,
                announcer,
                i,
            )
            if samples.live and i + 1 == len(plan.groups):
                samples.live.release(window + 1)
            if not is_last_window:
                continue
            norms = given.x_norm, given.y_norm
            del given, source
            rescaled = architecture_of(template).is_rescaled(template)
            if rescaled or any(norm.changes for norm in norms):
                params, kept = folded(template, params, kept, *norms)
            x_val, y_val = samples.val(data_slice, streamed=streamed)
            part_size = group.steps_per_part and group.steps_per_part * train_config.batch_size
            ahead.await_programs(i, "scoring")
            scores = scores_of_group(group, program, params, kept, hyper, x_val, y_val, part_size)
            scored = x_val if y_val is None else y_val
            severity: dict[str, float | int | np.ndarray] = {
                "offset_severity": samples.offset_severity[data_slice]
            }
            scores = [score | severity for score in scores]
            announcer.scored(i, [scalars(score) for score in scores])
            for place, result in members_of_group(
                program, group_configs, params, kept, hyper, scores, losses, scored
            ):
                warn_of_outliers(result, x_val.shape[0], warned)
                keep(group.members[place], result)
            # The next group may need their memory.
            del params, kept, hyper, scores, result, x_val, y_val, scored
            give_back_free_memory()
        if output is not None:
            of_main(lambda: writer.finish(train_config, data))
    if progress and is_main():
        print(compilations, file=sys.stderr)
    if output is not None:
        return SweepResult.load(output)
    return SweepResult([members[i] for i in range(len(configs))], train_config, data)


def plan_for(
    configs: Sequence[SAEConfig],
    train: ActivationData,
    train_config: TrainConfig | None = None,
    *,
    targets: ActivationData | None = None,
) -> Plan:
    """The plan that `train_sweep` would follow; print it to see groups, memory, work and, on a CPU,
    how long it should take.

    The time is that of TopK on a recent server's cores; a step of other architectures takes 0.6 to
    1.7 times as long.

    Raises:
      ValueError: as `train_sweep` does.
    """
    prepare_backends()
    samples = SweepSamples.of(train, train, targets, targets)
    configs = _resolved(configs, samples)
    train_config = samples.fitted(train_config or TrainConfig())
    placement = Placement.of(train_config, configs)
    sizes = samples.planned_sizes(train_config.batch_size)
    samples.check_values()
    plan = plan_sweep(configs, sizes, train_config, placement, samples.offset_severity)
    if placement.platform == "cpu" and is_alone():
        work = work_of(plan, configs, sizes, train_config, placement)
        plan = dataclasses.replace(plan, seconds=seconds_of(work))
    return plan


def _windows(live: Live | None) -> range:
    """The windows of live samples that some group has yet to train on; of other samples, one."""
    if live is None:
        return range(1)
    # Members are scored after the last, which may be trained on already.
    return range(min(live.num_released, len(live.ends) - 1), len(live.ends))


def _resolved(configs: Iterable[SAEConfig], samples: SweepSamples) -> list[SAEConfig]:
    """The configs, each naming a data slice that there is."""
    if isinstance(configs, SAEConfig):
        raise ValueError("configs is one SAEConfig; expected a sequence, [config]")
    configs = list(configs)
    if not configs:
        raise ValueError("the sweep has no members; expected at least one SAEConfig")
    for i, config in enumerate(configs):
        if not isinstance(config, SAEConfig):
            raise ValueError(
                f"configs[{i}] is {config!r}, a {type(config).__name__}; expected an SAEConfig,"
                " such as SAEConfig(d_sae=512, k=50)"
            )
        architecture_of(config).check(config)
        samples.check(config)
    if len(samples.sizes) == 1:
        (layer, position) = next(iter(samples.sizes))
        configs = [
            dataclasses.replace(config, layer=layer, position=position)
            if config.data_slice == (None, None)
            else config
            for config in configs
        ]
    for config in configs:
        if config.data_slice not in samples.sizes:
            raise ValueError(
                f"{config} wants (layer, position) {config.data_slice}; the data has"
                f" {list(samples.sizes)}"
            )
    first: dict[SAEConfig, int] = {}
    for i, config in enumerate(configs):
        if (twin := first.setdefault(config, i)) != i:
            raise ValueError(
                f"configs[{twin}] and configs[{i}] are both {config}: they would be the same SAE"
                " twice, and intervals over them too narrow; expected members that differ"
            )
    return configs


def _identity(
    configs: Sequence[SAEConfig],
    train_config: TrainConfig,
    optimizer: Optimizer,
    samples: SweepSamples,
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued."""
    identity = {
        "configs": [dataclasses.asdict(config) for config in configs],
        # Another mesh may go on.
        "train_config": dataclasses.asdict(dataclasses.replace(train_config, mesh=None)),
        **samples.fingerprints(),
    }
    if optimizer is not adam:
        name = getattr(optimizer, "__qualname__", type(optimizer).__qualname__)
        identity["optimizer"] = f"{optimizer.__module__}.{name}"
    return identity
