"""Training a sweep: plan, train each group epoch by epoch, score its members."""

import dataclasses
import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sae_jax.activations.matrix import Live, Matrix, blocks
from sae_jax.activations.slices import ActivationData, DataSlice, of_slice
from sae_jax.architectures.functional import folded
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Arrays, Hyperparameters
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.metrics.evaluate import evaluate_group
from sae_jax.sweep.ahead import CompilingAhead, Needs
from sae_jax.sweep.batches import BatchSource, InMemory
from sae_jax.sweep.checkpoints import GroupCheckpoints, SweepCheckpoints
from sae_jax.sweep.compilations import counted_compilations
from sae_jax.sweep.events import Announcer, Callback
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.normalization import center_of, mean_and_scale
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import Group, Plan, plan_sweep
from sae_jax.sweep.preemption import Notice, Preempted, preemption_notice
from sae_jax.sweep.processes import (
    check_only,
    check_same,
    check_sees,
    enter,
    gathered,
    is_alone,
    is_main,
    of_main,
    readable,
)
from sae_jax.sweep.progress import shown_progress
from sae_jax.sweep.provenance import described
from sae_jax.sweep.result import (
    PARTIAL_NAME,
    Member,
    SweepResult,
    check_data,
    check_free,
    divergence,
    writing_sweep,
)
from sae_jax.sweep.samples import Normalized, SweepSamples
from sae_jax.sweep.step import Optimizer, Program, adam, init_group, train_epoch
from sae_jax.sweep.streamed import Streamed

# Above which share of the variance in 1 % of the rows a sweep warns; a normal distribution's is
# below 0.02 in the widths of language models.
MAX_OUTLIER_SHARE = 0.25


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
    train_config = train_config or TrainConfig()
    check_data(data or {})
    data = described(train, val) | dict(data or {})
    if output is not None:
        of_main(partial(check_free, Path(output), overwrite))
    samples = SweepSamples.of(train, val, targets, val_targets, target_weights)
    samples.check_resumable(checkpoint_dir)
    train_config = samples.fitted(train_config)
    configs = _resolved(configs, samples)
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
    sizes = samples.planned_sizes(train_config.batch_size)
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
            _needs(group, configs, train_config, optimizer, placement, samples)
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
            streamed = group.steps_per_part is not None
            if i not in begun:
                given = samples.normalized(data_slice, template.normalize, streamed=streamed)
                center = center_of(given.x if given.y is None else given.y, template.b_dec_init)
                begun[i] = given, mean_and_scale(given.x)[1], center
            given, scale, center = begun.pop(i) if is_last_window else begun[i]
            num_samples, d_in = given.x.shape
            hyper = placement.spread(
                hyperparameters(group_configs, train_config, num_samples, d_in, scale)
            )
            source = _source(given.x, given.y, group, train_config.batch_size, placement)
            last_part = train_config.epochs * source.parts_per_epoch
            if samples.live and isinstance(source, Streamed):
                last_part = source.last_part(window)
            ahead.await_programs(i, "training")
            params, kept, losses = _train_group(
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
            scores = _scores(group, program, params, kept, hyper, x_val, y_val, part_size)
            scored = x_val if y_val is None else y_val
            severity: dict[str, float | int | np.ndarray] = {
                "offset_severity": samples.offset_severity[data_slice]
            }
            scores = [score | severity for score in scores]
            trained = _members(group_configs, params, kept, scores, losses, scored)
            announcer.scored(i, [_scalars(score) for score in scores])
            for member, result in zip(group.members, trained, strict=True):
                _warn_of_outliers(result, x_val.shape[0], warned)
                keep(member, result)
        if output is not None:
            of_main(lambda: writer.finish(train_config, data))
    if progress and is_main():
        print(compilations, file=sys.stderr)
    if output is not None:
        return SweepResult.load(output)
    return SweepResult([members[i] for i in range(len(configs))], train_config, data)


def _warn_of_outliers(member: Member, num_samples: int, warned: set[DataSlice]) -> None:
    """Warns, once a data slice, where a few rows of extreme norm decide the scores."""
    share, data_slice = member.metrics["outlier_variance_share"], member.config.data_slice
    # Of fewer samples a single one is more than 1 %.
    if num_samples >= 100 and share > MAX_OUTLIER_SHARE and data_slice not in warned:
        warned.add(data_slice)
        warnings.warn(
            f"1 % of the rows of val{of_slice(data_slice)} hold {share:.0%} of its variance:"
            " fvu and explained variance say little of the other rows, of which"
            " fvu_without_outliers tells; Split.within_norm leaves such rows out",
            stacklevel=3,
        )


def plan_for(
    configs: Sequence[SAEConfig],
    train: ActivationData,
    train_config: TrainConfig | None = None,
    *,
    targets: ActivationData | None = None,
) -> Plan:
    """The plan that `train_sweep` would follow; print it to see groups, memory and work.

    Raises:
      ValueError: as `train_sweep` does.
    """
    samples = SweepSamples.of(train, train, targets, targets)
    configs = _resolved(configs, samples)
    train_config = samples.fitted(train_config or TrainConfig())
    placement = Placement.of(train_config, configs)
    sizes = samples.planned_sizes(train_config.batch_size)
    return plan_sweep(configs, sizes, train_config, placement, samples.offset_severity)


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


def _needs(
    group: Group,
    configs: Sequence[SAEConfig],
    train_config: TrainConfig,
    optimizer: Optimizer,
    placement: Placement,
    samples: SweepSamples,
) -> Needs:
    """What a group's programs depend on."""
    of_group = [configs[member] for member in group.members]
    program = Program(
        template=of_group[0].template,
        optimizer=optimizer,
        dtype=train_config.compute_dtype,
        kernel=group.kernel,
        k_max=group.k_max,
        prefix_bounds=_prefix_bounds(of_group),
        sequential=group.sequential,
        placement=placement,
    )
    sizes, num_val = samples.sizes[group.data_slice], samples.num_val[group.data_slice]
    return Needs(group, program, of_group, train_config, sizes, num_val, samples.has_targets)


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


def _source(
    x: Matrix, target: Matrix | None, group: Group, batch_size: int, placement: Placement
) -> BatchSource:
    """Where the plan says that a group's batches come from."""
    if group.steps_per_part is None:
        return InMemory(x[:], batch_size, placement, None if target is None else target[:])
    return Streamed(x, batch_size, group.steps_per_part, placement, target)


def _train_group(
    group: Group,
    program: Program,
    hyper: Hyperparameters,
    center: np.ndarray,
    data_seed: int,
    source: BatchSource,
    train_config: TrainConfig,
    last_part: int,
    checkpoints: GroupCheckpoints | None,
    preempted: Notice | None,
    announcer: Announcer,
    i: int,
) -> tuple[Arrays, Arrays, np.ndarray]:
    """What was trained and what was kept, spread, and all losses, `[num_steps, M]`.

    Trains up to `last_part`, without it: to the end, or until a window of live samples may go.
    """
    placement, num_members = program.placement, len(group.members)
    initial = partial(
        init_group, hyper, center, program=program, d_in=source.d_in, width=group.width
    )
    restored = None
    place = partial(placement.spread, width=group.width)
    if checkpoints:
        template = jax.eval_shape(lambda: jax.tree.map(lambda a: a[:num_members], initial()))
        restored = checkpoints.restore(template, source.first_step, place)
    first_part, state, *history = restored or (0, initial())
    check_same({"checkpoint": first_part})
    del restored  # It holds a state, and each part gives up the one before.
    state = place(state)
    per_epoch = source.parts_per_epoch
    steps_per_epoch = source.first_step(per_epoch)
    num_parts = train_config.epochs * per_epoch

    def tell(part: int) -> None:
        """Announces the epoch that ends before a part."""
        losses = _joined(history[-per_epoch:])[-steps_per_epoch:]
        announcer.epoch(i, part // per_epoch, losses)

    announcer.compiling(i, first_part // per_epoch)
    parts = source.parts(data_seed, first_part, last_part)
    saved = first_part
    for part in range(first_part, last_part):
        first_step = source.first_step(part)
        try:
            batches = next(parts)
        except ValueError as error:
            if checkpoints is None or preempted is None or not preempted.is_set():
                raise
            if part > saved:
                checkpoints.save(part, state, _joined(history))
            raise Preempted("stopped by SIGTERM while live samples were awaited") from error
        state, losses = train_epoch(state, hyper, batches, first_step, program=program)
        del batches
        losses = readable(losses[:, :num_members])
        if part > first_part:
            # One part behind, so that the device never waits, neither for the next part nor for
            # who is told, and no more parts lie ready than were planned.
            jax.block_until_ready(history[-1])
            if part % per_epoch == 0:
                tell(part)
        history.append(losses)
        if checkpoints:
            stop = preempted is not None and preempted.is_set()
            last = part + 1 == last_part
            if stop or last or checkpoints.is_due(part + 1, per_epoch):
                checkpoints.save(part + 1, state, _joined(history))
                saved = part + 1
            if stop and not last:
                epochs = (part + 1) / per_epoch
                raise Preempted(f"stopped by SIGTERM after epoch {epochs:g} of a group")
    if last_part == num_parts > first_part:
        tell(num_parts)
    # Scoring does not need the optimizer's state, often two thirds of all.
    return state.average or state.params, state.kept, _joined(history)


def _joined(history: Sequence[np.ndarray | jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(losses) for losses in history])


def _prefix_bounds(configs: Sequence[SAEConfig]) -> tuple[int, ...] | None:
    """The largest of the members' prefixes, one by one."""
    sizes = zip(*(config.prefix_sizes for config in configs), strict=True)
    return tuple(map(max, sizes)) or None


def _members(
    configs: Sequence[SAEConfig],
    params: Arrays,
    kept: Arrays,
    scores: Sequence[Mapping[str, float | int | np.ndarray]],
    losses: np.ndarray,
    scored: Matrix,
) -> Iterator[Member]:
    """The members one by one, each of its true size."""
    # Samples whose squares overflow have an infinite error under any SAE.
    overflows = not np.isfinite(sum(np.vdot(block, block) for block in blocks(scored)))
    for i, (config, score) in enumerate(zip(configs, scores, strict=True)):
        own = gathered({name: array[i] for name, array in (params | kept).items()})
        scalars = _scalars(score)
        firing_rate = np.asarray(score["firing_rate"])
        history = losses[:, i].copy()
        diverged_at = divergence(history, overflows or bool(np.isfinite(score["mse"])))
        yield Member(
            config,
            architecture_of(config).of_true_size(own, config.d_sae),
            scalars,
            firing_rate,
            history,
            diverged_at,
        )


def _scalars(score: Mapping[str, float | int | np.ndarray]) -> dict[str, float | int]:
    return {name: value for name, value in score.items() if not isinstance(value, np.ndarray)}


def _scores(
    group: Group,
    program: Program,
    params: Arrays,
    kept: Arrays,
    hyper: Hyperparameters,
    x_val: Matrix,
    y_val: Matrix | None,
    part_size: int | None,
) -> list[dict[str, float | int | np.ndarray]]:
    """Every metric of every member, of as many at once as the plan says."""
    shares = program.placement.shares((params, kept, hyper), group.scored_at_once)
    scores: dict[int, dict[str, float | int | np.ndarray]] = {}
    for members, (params, kept, hyper) in shares:
        found = evaluate_group(
            program.template,
            params,
            kept,
            hyper,
            x_val,
            target=y_val,
            part_size=part_size,
            fetch=gathered,
        )
        scores |= zip(members, found, strict=True)
    return [scores[i] for i in range(len(group.members))]
