"""SIGTERM, the signal that schedulers send before they take a machine away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sae_jax.sweep import processes

_NOTE = "preempted"


class Preempted(RuntimeError):
    """SIGTERM ended training. The last finished epoch was saved, so training can be resumed."""


class Notice(threading.Event):
    """Set when SIGTERM came, to this process or to another of the same job."""

    def is_set(self) -> bool:
        """Whether it came; all processes hear the same."""
        own = super().is_set()
        return processes.of_main(lambda: own or processes.is_noted(_NOTE))

    def set(self, *_: object) -> None:
        """What a signal's handler does."""
        super().set()
        processes.note(_NOTE)


@contextmanager
def preemption_notice() -> Iterator[Notice]:
    """Gives a notice that SIGTERM sets, so that training can save before it ends.

    Only Python's main thread receives signals; in another thread the notice is never set.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    previous = signal.signal(signal.SIGTERM, notice.set)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, previous)
