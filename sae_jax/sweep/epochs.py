"""Training the members of one group, part after part, from where their checkpoint left them."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from sae_jax.activations.matrix import Matrix
from sae_jax.architectures.training import Arrays, Hyperparameters
from sae_jax.configs import TrainConfig
from sae_jax.sweep.batches import BatchSource, InMemory
from sae_jax.sweep.checkpoints import GroupCheckpoints
from sae_jax.sweep.events import Announcer
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import Group
from sae_jax.sweep.preemption import Notice, Preempted
from sae_jax.sweep.processes import check_same, readable
from sae_jax.sweep.step import Program, init_group, train_epoch
from sae_jax.sweep.streamed import Streamed


def source_of(
    x: Matrix, target: Matrix | None, group: Group, batch_size: int, placement: Placement
) -> BatchSource:
    """Where the plan says that a group's batches come from."""
    if group.steps_per_part is None:
        return InMemory(x[:], batch_size, placement, None if target is None else target[:])
    return Streamed(x, batch_size, group.steps_per_part, placement, target)


def train_group(
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
            # who is told, and no more parts lie ready than were planned. A copy, since an array
            # of JAX takes kilobytes more than its numbers.
            history[-1] = np.array(history[-1])
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
