"""SIGTERM, the signal that schedulers send before they take a machine away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Preempted(RuntimeError):
    """SIGTERM ended training. The last finished epoch was saved, so training can be resumed."""


@contextmanager
def preemption_notice() -> Iterator[threading.Event]:
    """Gives an event that SIGTERM sets, so that training can save before it ends.

    Only Python's main thread receives signals; in another thread the event is never set.
    """
    noticed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noticed
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: noticed.set())
    try:
        yield noticed
    finally:
        signal.signal(signal.SIGTERM, previous)
