"""Training a sweep: plan, train each group epoch by epoch, score its members."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.data import ActivationData, DataSlice, slices_of
from sae_jax.evaluate import evaluate_group
from sae_jax.sweep.plan import Group, Plan, plan_sweep
from sae_jax.sweep.result import Member, SweepResult
from sae_jax.sweep.step import Hyperparameters, MemberState, init_group, train_epoch


def train_sweep(
    configs: Sequence[SAEConfig],
    train: ActivationData,
    val: ActivationData,
    train_config: TrainConfig | None = None,
    *,
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
      data: JSON values that say where the activations came from, kept with the result.
      progress: whether to show a progress bar.

    Returns:
      The trained members in the order of `configs`.

    Raises:
      ValueError: if there are no members, activations are not finite float arrays `[n, D]`
        of one width, or a member's data slice is not among them.
    """
    train_config = train_config or TrainConfig()
    train_slices, val_slices = slices_of(train, "train"), slices_of(val, "val")
    configs = _resolved(configs, train_slices, val_slices)
    plan = plan_of(configs, train_slices, train_config)
    members: dict[int, Member] = {}
    with tqdm(total=train_config.epochs * len(configs), unit="epoch", disable=not progress) as bar:
        for group in plan.groups:
            bar.set_description(f"{len(group.members)} SAEs of d_sae <= {group.width}")
            x_train, x_val = train_slices[group.data_slice], val_slices[group.data_slice]
            group_configs = [configs[i] for i in group.members]
            for i, member in zip(
                group.members,
                _train_group(group, group_configs, x_train, x_val, train_config, bar),
                strict=True,
            ):
                members[i] = member
    return SweepResult([members[i] for i in range(len(configs))], train_config, dict(data or {}))


def plan_of(
    configs: Sequence[SAEConfig], train_slices: Mapping[DataSlice, np.ndarray], config: TrainConfig
) -> Plan:
    """The plan that `train_sweep` follows, for configs that name their slice."""
    sizes = {key: (array.shape[0], array.shape[1]) for key, array in train_slices.items()}
    return plan_sweep(configs, sizes, config)


def _resolved(
    configs: Sequence[SAEConfig],
    train_slices: Mapping[DataSlice, np.ndarray],
    val_slices: Mapping[DataSlice, np.ndarray],
) -> list[SAEConfig]:
    """The configs, each naming a data slice that there is."""
    if not configs:
        raise ValueError("the sweep has no members; expected at least one SAEConfig")
    if train_slices.keys() != val_slices.keys():
        raise ValueError(f"train has slices {list(train_slices)}, val has {list(val_slices)}")
    widths = {a.shape[1] for a in (*train_slices.values(), *val_slices.values())}
    if len(widths) > 1:
        raise ValueError(f"train and val have activations of widths {sorted(widths)}")
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
    return list(configs)


def _train_group(
    group: Group,
    configs: Sequence[SAEConfig],
    x_train: np.ndarray,
    x_val: np.ndarray,
    train_config: TrainConfig,
    bar: tqdm,
) -> Iterator[Member]:
    hyper = Hyperparameters(
        seed=jnp.array([c.seed for c in configs], jnp.uint32),
        d_sae=jnp.array([c.d_sae for c in configs], jnp.int32),
        k=jnp.array([c.k for c in configs], jnp.int32),
        learning_rate=jnp.array([c.learning_rate for c in configs], jnp.float32),
    )
    x = jnp.asarray(x_train)
    state = init_group(hyper, d_in=x.shape[1], width=group.width)
    history: list[jax.Array] = []
    for epoch in range(train_config.epochs):
        state, losses = _epoch(state, hyper, x, epoch, train_config)
        if history:
            # One epoch behind, so that the device never waits for the display.
            bar.set_postfix(loss=f"{np.median(np.asarray(history[-1])):.4g}", refresh=False)
            bar.update(len(configs))
        history.append(losses)
    step_losses = np.concatenate([np.asarray(losses) for losses in history])
    bar.update(len(configs))
    return _members(configs, state, hyper, step_losses, x_val)


def _epoch(
    state: MemberState,
    hyper: Hyperparameters,
    x: jax.Array,
    epoch: int,
    train_config: TrainConfig,
) -> tuple[MemberState, jax.Array]:
    return train_epoch(
        state,
        hyper,
        x,
        jnp.uint32(train_config.data_seed),
        jnp.int32(epoch),
        batch_size=train_config.batch_size,
        dtype=train_config.compute_dtype,
    )


def _members(
    configs: Sequence[SAEConfig],
    state: MemberState,
    hyper: Hyperparameters,
    step_losses: np.ndarray,
    x_val: np.ndarray,
) -> Iterator[Member]:
    scores = evaluate_group(state.params, hyper.k, hyper.d_sae, x_val)
    stacked = jax.device_get(state.params)
    for i, (config, score) in enumerate(zip(configs, scores, strict=True)):
        size = config.d_sae
        params = {
            "w_enc": stacked["w_enc"][i, :, :size].copy(),
            "b_enc": stacked["b_enc"][i, :size].copy(),
            "w_dec": stacked["w_dec"][i, :size].copy(),
            "b_dec": stacked["b_dec"][i].copy(),
        }
        scalars = {
            name: value for name, value in score.items() if not isinstance(value, np.ndarray)
        }
        yield Member(config, params, scalars, np.asarray(score["firing_rate"]), step_losses[:, i])
