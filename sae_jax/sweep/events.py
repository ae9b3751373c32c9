"""What a sweep tells while it trains: events, handed to whoever wants to show or keep them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sae_jax.configs import SAEConfig
from sae_jax.sweep.plan import Group


class Event(NamedTuple):
    """Something that happened to a group of members.

    Attributes:
      kind: `"compiling"` before a group's first epoch, whose program is compiled or taken from a
        cache; `"epoch"` after each epoch, told while the next one trains; `"scored"` when the
        group is done.
      group: index of the group, from 0.
      num_groups: number of groups of the sweep.
      plan: what is compiled: width, kernel, and the members' indices into the sweep's configs.
      configs: config of each member of the group.
      epoch: number of finished epochs.
      num_epochs: number of epochs that a group trains for.
      seconds_left: estimate of the time until the whole sweep is done; `None` until two epochs
        have told the pace.
      losses: mean loss of each member over the epoch, `[M]`; of an `"epoch"` alone.
      scores: metrics of each member by name; of `"scored"` alone.
    """

    kind: Literal["compiling", "epoch", "scored"]
    group: int
    num_groups: int
    plan: Group
    configs: Sequence[SAEConfig]
    epoch: int
    num_epochs: int
    seconds_left: float | None = None
    losses: np.ndarray | None = None
    scores: Sequence[Mapping[str, float]] | None = None


Callback = Callable[[Event], None]
"""Is called with every event, on the main thread. What it raises ends the sweep."""


class Announcer:
    """Makes the events of a sweep, with the time that is left, and hands them on."""

    def __init__(
        self,
        groups: Sequence[Group],
        work: Sequence[float],
        configs: Sequence[SAEConfig],
        num_epochs: int,
        callbacks: Sequence[Callback],
    ):
        """Starts with nothing done.

        Args:
          groups: the groups in the order in which they train.
          work: what an epoch of each costs, in any unit.
          configs: the sweep's configs.
          num_epochs: number of epochs that a group trains for.
          callbacks: who gets the events.
        """
        self._groups, self._work, self._configs = groups, work, configs
        self._num_epochs, self._callbacks = num_epochs, callbacks
        self._started = self._latest = time.monotonic()
        self._num_timed = 0
        # Seconds of epochs, and what they did; seconds from a group's start to its first epoch.
        self._trained = self._done = self._prepared = 0.0
        self._num_prepared = 0
        self._begun: set[int] = set()

    def compiling(self, group: int, epoch: int) -> None:
        """Says that a group starts, after so many epochs that a checkpoint holds.

        Not again, where it goes on with the next window of live samples.
        """
        if group in self._begun:
            return
        self._begun.add(group)
        self._started, self._num_timed = time.monotonic(), 0
        self._tell("compiling", group, epoch)

    def epoch(self, group: int, epoch: int, losses: np.ndarray) -> None:
        """Says that an epoch is done; `losses` are those of its steps, `[steps, M]`."""
        now = time.monotonic()
        if self._num_timed:
            self._trained += now - self._latest
            self._done += self._work[group]
        else:
            self._prepared += now - self._started
            self._num_prepared += 1
        self._latest, self._num_timed = now, self._num_timed + 1
        self._tell("epoch", group, epoch, losses=losses.mean(axis=0))

    def scored(self, group: int, scores: Sequence[Mapping[str, float]]) -> None:
        """Says that a group is done."""
        self._tell("scored", group, self._num_epochs, scores=scores)

    def _tell(
        self,
        kind: Literal["compiling", "epoch", "scored"],
        group: int,
        epoch: int,
        losses: np.ndarray | None = None,
        scores: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        plan = self._groups[group]
        event = Event(
            kind,
            group,
            len(self._groups),
            plan,
            [self._configs[member] for member in plan.members],
            epoch,
            self._num_epochs,
            self._seconds_left(group, epoch),
            losses,
            scores,
        )
        for callback in self._callbacks:
            callback(event)

    def _seconds_left(self, group: int, epoch: int) -> float | None:
        if not self._done:
            return None
        later = self._work[group + 1 :]
        work = self._work[group] * (self._num_epochs - epoch) + self._num_epochs * sum(later)
        preparation = self._prepared / self._num_prepared * len(later)
        return self._trained / self._done * work + preparation
