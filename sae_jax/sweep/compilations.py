"""How many programs XLA compiles, how long that takes, and how long training waits for it."""

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass
class Compilations:
    """What has been compiled so far, or read from JAX's compilation cache.

    Attributes:
      count: number of programs.
      seconds: time that they took, on all threads; tracing comes on top.
      waited: time of the thread that trains, which compiled or waited for another thread to.
    """

    count: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __str__(self) -> str:
        return (
            f"compiled {self.count} programs in {self.seconds:.1f} s, for {self.waited:.1f} s of"
            " which training waited"
        )


@contextmanager
def counted_compilations() -> Iterator[Compilations]:
    """Counts what is compiled meanwhile; the caller's thread is the one that trains."""
    found, lock, trains = Compilations(), threading.Lock(), threading.get_ident()

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == _EVENT:
            with lock:
                found.count += 1
                found.seconds += duration_secs
                if threading.get_ident() == trains:
                    found.waited += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
