"""Training a sweep: plan, train each group epoch by epoch, score its members."""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_jax.activations.slices import ActivationData, DataSlice, Slices, of_slice, slices_of
from sae_jax.architectures.base import Params
from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.metrics.evaluate import evaluate_group
from sae_jax.sweep.checkpoints import GroupCheckpoints, SweepCheckpoints, fingerprint
from sae_jax.sweep.plan import EVAL_BATCH_SIZE, Group, Plan, plan_sweep
from sae_jax.sweep.preemption import Preempted, preemption_notice
from sae_jax.sweep.provenance import described
from sae_jax.sweep.result import (
    Member,
    SweepResult,
    check_data,
    check_free,
    divergence,
    writing_sweep,
)
from sae_jax.sweep.step import Hyperparameters, init_group, train_epoch

# Above which share of the variance in 1 % of the rows a sweep warns; a normal distribution's is
# below 0.02 in the widths of language models.
MAX_OUTLIER_SHARE = 0.25


def train_sweep(
    configs: Sequence[SAEConfig],
    train: ActivationData,
    val: ActivationData,
    train_config: TrainConfig | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    data: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Trains every member and scores it on the validation samples.

    A member's parameters are those that it would get alone, up to the order of
    floating-point sums: its random numbers depend on its own config, and all members of a
    data slice see the same batches.

    Args:
      configs: the members.
      train: training activations: an array `[n, D]`, a selection of a store, a sequence of
        selections, or a mapping from (layer, position) to arrays.
      val: validation activations, likewise.
      train_config: what the members share.
      checkpoint_dir: where to keep checkpoints. If there are some of this sweep already,
        training goes on from the last one and ends with the parameters, history and
        metrics of an uninterrupted run. On SIGTERM the epoch in progress is finished and
        saved, and `Preempted` is raised.
      checkpoint_every: epochs from one checkpoint to the next, besides the last of each
        group; `None` for as many as keep the making of checkpoints below 5 % of the time.
        Results do not depend on it.
      output: folder to save the sweep to, as `SweepResult.save` would. Members are written as
        their group is done, and read when they are asked for: a sweep then needs no more
        memory than its largest group.
      overwrite: whether to replace a sweep in `output`.
      data: JSON values that say where the activations came from, kept with the result beside
        what selections say of themselves.
      progress: whether to show a progress bar.

    Returns:
      The trained members in the order of `configs`.

    Raises:
      ValueError: if there are no members, or one twice; activations are not finite float
        arrays `[n, D]` of one width; a member's data slice is not among them, or does not
        fit memory; `data` is not JSON; `output` holds something; or the checkpoints are of
        another sweep or of other data.
      Preempted: after SIGTERM, when `checkpoint_dir` holds what is finished.
    """
    train_config = train_config or TrainConfig()
    check_data(data or {})
    data = described(train) | dict(data or {})
    if output is not None:
        check_free(Path(output), overwrite)
    train_slices, val_slices = slices_of(train, "train"), slices_of(val, "val")
    configs = _resolved(configs, train_slices, val_slices)
    for data_slice in val_slices.constant:
        warnings.warn(
            f"all rows of val{of_slice(data_slice)} are equal: fvu and r2 are undefined there,"
            " and come out as NaN",
            stacklevel=2,
        )
    plan = plan_sweep(configs, train_slices.shapes, train_config)
    members: dict[int, Member] = {}
    warned: set[DataSlice] = set()
    with ExitStack() as stack:
        checkpoints = preempted = None
        if checkpoint_dir is not None:
            identity = _identity(configs, train_config, train_slices, val_slices)
            checkpoints = stack.enter_context(
                SweepCheckpoints.open(checkpoint_dir, identity, plan, checkpoint_every)
            )
            plan = checkpoints.plan
            preempted = stack.enter_context(preemption_notice())
        bar = stack.enter_context(
            tqdm(total=train_config.epochs * len(configs), unit="epoch", disable=not progress)
        )
        writer = None
        if output is not None:
            writer = stack.enter_context(writing_sweep(output, overwrite=overwrite))
        for i, group in enumerate(plan.groups):
            if preempted is not None and preempted.is_set():
                raise Preempted(f"stopped by SIGTERM after {i} of {len(plan.groups)} groups")
            bar.set_description(f"{len(group.members)} SAEs of d_sae <= {group.width}")
            group_configs = [configs[member] for member in group.members]
            params, losses = _train_group(
                group,
                group_configs,
                train_slices[group.data_slice],
                train_config,
                checkpoints.group(i) if checkpoints else None,
                preempted,
                bar,
            )
            x_val = val_slices[group.data_slice]
            trained = _members(group, group_configs, params, losses, x_val)
            for member, result in zip(group.members, trained, strict=True):
                _warn_of_outliers(result, warned)
                if writer:
                    writer.write(member, result)
                else:
                    members[member] = result
        if writer:
            writer.finish(train_config, data)
    if output is not None:
        return SweepResult.load(output)
    return SweepResult([members[i] for i in range(len(configs))], train_config, data)


def _warn_of_outliers(member: Member, warned: set[DataSlice]) -> None:
    """Warns, once a data slice, where a few rows of extreme norm decide the scores."""
    share, data_slice = member.metrics["outlier_variance_share"], member.config.data_slice
    if share > MAX_OUTLIER_SHARE and data_slice not in warned:
        warned.add(data_slice)
        warnings.warn(
            f"1 % of the rows of val{of_slice(data_slice)} hold {share:.0%} of its variance:"
            " fvu and explained variance say little of the other rows, of which"
            " fvu_without_outliers tells; Split.within_norm leaves such rows out",
            stacklevel=3,
        )


def plan_for(
    configs: Sequence[SAEConfig], train: ActivationData, train_config: TrainConfig | None = None
) -> Plan:
    """The plan that `train_sweep` would follow; print it to see groups, memory and work.

    Raises:
      ValueError: as `train_sweep` does.
    """
    slices = slices_of(train, "train")
    configs = _resolved(configs, slices, slices)
    return plan_sweep(configs, slices.shapes, train_config or TrainConfig())


def _resolved(
    configs: Iterable[SAEConfig], train_slices: Slices, val_slices: Slices
) -> list[SAEConfig]:
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
    if train_slices.keys() != val_slices.keys():
        raise ValueError(f"train has slices {list(train_slices)}, val has {list(val_slices)}")
    if train_slices.d_in != val_slices.d_in:
        raise ValueError(
            f"train has activations of width {train_slices.d_in}, val of {val_slices.d_in}"
        )
    if len(train_slices) == 1:
        (layer, position) = next(iter(train_slices))
        configs = [
            dataclasses.replace(config, layer=layer, position=position)
            if config.data_slice == (None, None)
            else config
            for config in configs
        ]
    for config in configs:
        if config.data_slice not in train_slices:
            raise ValueError(
                f"{config} wants (layer, position) {config.data_slice}; the data has"
                f" {list(train_slices)}"
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
    configs: Sequence[SAEConfig], train_config: TrainConfig, train: Slices, val: Slices
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued."""
    return {
        "configs": [dataclasses.asdict(config) for config in configs],
        "train_config": dataclasses.asdict(train_config),
        "train": {f"{layer}, {position}": fingerprint(x) for (layer, position), x in train.items()},
        "val": {f"{layer}, {position}": fingerprint(x) for (layer, position), x in val.items()},
    }


def _train_group(
    group: Group,
    configs: Sequence[SAEConfig],
    x_train: np.ndarray,
    train_config: TrainConfig,
    checkpoints: GroupCheckpoints | None,
    preempted: Event | None,
    bar: tqdm,
) -> tuple[Params, np.ndarray]:
    """The trained parameters, leading axis M, and every step's losses, `[num_steps, M]`."""
    hyper = _hyperparameters(configs, train_config)
    one_order = len(set(np.asarray(hyper.data_seed).tolist())) == 1
    x = jnp.asarray(x_train)
    transposed = group.path != "dense"
    initial = partial(init_group, hyper, d_in=x.shape[1], width=group.width, transposed=transposed)
    steps_per_epoch = -(-len(x) // train_config.batch_size)
    restored = None
    if checkpoints:
        restored = checkpoints.restore(jax.eval_shape(initial), steps_per_epoch)
    first_epoch, state, *history = restored or (0, initial())
    del restored  # It holds a state, and each epoch gives up the one before.
    bar.update(first_epoch * len(configs))
    for epoch in range(first_epoch, train_config.epochs):
        state, losses = train_epoch(
            state,
            hyper,
            x,
            jnp.int32(epoch),
            batch_size=train_config.batch_size,
            dtype=train_config.compute_dtype,
            path=group.path,
            k_max=group.k_max,
            one_by_one=group.one_by_one,
            one_order=one_order,
        )
        if history:
            # One epoch behind, so that the device never waits for the display.
            bar.set_postfix(loss=f"{np.median(np.asarray(history[-1])):.4g}", refresh=False)
        history.append(losses)
        if checkpoints:
            stop = preempted is not None and preempted.is_set()
            last = epoch + 1 == train_config.epochs
            if stop or last or checkpoints.is_due(epoch + 1):
                checkpoints.save(epoch + 1, state, _joined(history))
            if stop and not last:
                raise Preempted(f"stopped by SIGTERM after epoch {epoch + 1} of a group")
        bar.update(len(configs))
    params = state.params
    del state  # Scoring does not need the moments, two thirds of it.
    if transposed:
        params = params | {"w_enc": jnp.swapaxes(params["w_enc"], -1, -2)}
    return params, _joined(history)


def _joined(history: Sequence[np.ndarray | jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(losses) for losses in history])


def _hyperparameters(configs: Sequence[SAEConfig], train_config: TrainConfig) -> Hyperparameters:
    data_seeds = [
        train_config.data_seed if config.data_seed is None else config.data_seed
        for config in configs
    ]
    return Hyperparameters(
        seed=jnp.array([config.seed for config in configs], jnp.uint32),
        d_sae=jnp.array([config.d_sae for config in configs], jnp.int32),
        k=jnp.array([config.k for config in configs], jnp.int32),
        learning_rate=jnp.array([config.learning_rate for config in configs], jnp.float32),
        data_seed=jnp.array(data_seeds, jnp.uint32),
    )


def _members(
    group: Group,
    configs: Sequence[SAEConfig],
    params: Params,
    losses: np.ndarray,
    x_val: np.ndarray,
) -> Iterator[Member]:
    scores = _scores(group, configs, params, x_val)
    # Samples whose squares overflow have an infinite error under any SAE.
    overflows = not np.isfinite(np.vdot(x_val, x_val))
    for i, (config, score) in enumerate(zip(configs, scores, strict=True)):
        own = jax.device_get({name: array[i] for name, array in params.items()})
        of_true_size = {
            "w_enc": own["w_enc"][:, : config.d_sae].copy(),
            "b_enc": own["b_enc"][: config.d_sae].copy(),
            "w_dec": own["w_dec"][: config.d_sae].copy(),
            "b_dec": own["b_dec"].copy(),
        }
        scalars = {
            name: value for name, value in score.items() if not isinstance(value, np.ndarray)
        }
        firing_rate = np.asarray(score["firing_rate"])
        history = losses[:, i].copy()
        diverged_at = divergence(history, overflows or bool(np.isfinite(score["mse"])))
        yield Member(config, of_true_size, scalars, firing_rate, history, diverged_at)


def _scores(
    group: Group, configs: Sequence[SAEConfig], params: Params, x_val: np.ndarray
) -> list[dict[str, float | int | np.ndarray]]:
    """Every metric of every member, of as many at once as the plan says."""
    k, d_sae = (
        jnp.array([getattr(config, name) for config in configs], jnp.int32)
        for name in ("k", "d_sae")
    )
    scores: list[dict[str, float | int | np.ndarray]] = []
    while len(scores) < len(configs):
        # The last share is moved back to the size of the others: another would compile anew.
        first = min(len(scores), len(configs) - group.scored_at_once)
        share = slice(first, first + group.scored_at_once)
        found = evaluate_group(
            {name: array[share] for name, array in params.items()},
            k[share],
            d_sae[share],
            x_val,
            EVAL_BATCH_SIZE,
        )
        scores += found[len(scores) - first :]
    return scores
