"""The pace of checkpoints: how often one is made."""

import numbers
import time

# Largest share of a run's time that the making of checkpoints may take.
MAX_SHARE = 0.05
# Seconds that a checkpoint is assumed to cost before one was made. The first is then due after
# ten seconds at the earliest, which is what starting and compiling again would cost.
FIRST_COST = 0.5


class Pace:
    """Says when a checkpoint is due: every so many epochs, or as often as time allows."""

    def __init__(self, every: int | None = None):
        """Starts the clock.

        Args:
          every: number of epochs from one checkpoint to the next; `None` for the least that
            keeps the making of checkpoints below `MAX_SHARE` of the time.

        Raises:
          ValueError: if `every` is neither `None` nor a positive integer.
        """
        if every is not None and not (isinstance(every, numbers.Integral) and every > 0):
            raise ValueError(f"checkpoint_every is {every!r}; allowed is None, or 1 or more epochs")
        self._every = every
        self._start = time.monotonic()
        self._spent, self._latest = 0.0, FIRST_COST

    def is_due(self, parts: int, per_epoch: int = 1) -> bool:
        """Whether to save after so many finished parts of epochs, of so many an epoch."""
        if self._every is not None:
            return parts % (self._every * per_epoch) == 0
        elapsed = time.monotonic() - self._start
        return self._spent + self._latest <= MAX_SHARE * elapsed

    def add(self, seconds: float) -> None:
        """Counts the seconds that a checkpoint took."""
        self._latest = seconds
        self._spent += seconds
