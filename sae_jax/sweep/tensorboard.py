"""Keeps a sweep's events as TensorBoard's event files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_jax.sweep.events import Callback, Event


@contextmanager
def log_to(log_dir: str | Path) -> Iterator[Callback]:
    """Gives a callback that writes a run for each member, to be watched while it trains.

    A run is the folder `00012` of member 12. It holds `loss`, the mean over an epoch by epoch;
    when the member is scored every metric, as `metrics/fvu`; and its config as text. An epoch that
    a resumed sweep trains again is written again.

    Example:

        with tensorboard.log_to("runs/log") as log:
            sae_jax.train_sweep(configs, train, val, callbacks=[log])

    Args:
      log_dir: folder of the runs, for `tensorboard --logdir`.

    Raises:
      ValueError: if tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError("event files need tensorboardX: the extra `tensorboard`") from error

    writers: dict[int, Any] = {}

    def log(event: Event) -> None:
        for place, member in enumerate(event.plan.members):
            if member not in writers:
                writers[member] = SummaryWriter(str(Path(log_dir) / f"{member:05d}"))
                writers[member].add_text("config", repr(event.configs[place]))
            writer = writers[member]
            if event.losses is not None:
                writer.add_scalar("loss", float(event.losses[place]), event.epoch)
            for name, value in (event.scores[place] if event.scores else {}).items():
                writer.add_scalar(f"metrics/{name}", value, event.epoch)
            writer.flush()
            if event.kind == "scored":
                # Each writer has a thread and an open file.
                writers.pop(member).close()

    try:
        yield log
    finally:
        for writer in writers.values():
            writer.close()
