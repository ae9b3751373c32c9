"""Shows how far a sweep is: a bar on a terminal, and a line an epoch where there is none."""

import datetime
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from sae_jax.sweep.events import Callback, Event


@contextmanager
def shown_progress(num_members: int, num_epochs: int) -> Iterator[Callback]:
    """Gives a callback that shows events on standard error.

    Args:
      num_members: number of members of the sweep.
      num_epochs: number of epochs that each trains for.
    """
    if not sys.stderr.isatty():
        yield lambda event: print(line(event), file=sys.stderr, flush=True)
        return
    with tqdm(total=num_members * num_epochs, unit="epoch") as bar:
        yield lambda event: _show(bar, event)


def line(event: Event) -> str:
    """An event as one line, such as "group 1 of 3, epoch 5 of 25: loss 0.12, 0:03:10 left"."""
    plan, place = event.plan, f"group {event.group + 1} of {event.num_groups}"
    match event.kind:
        case "compiling":
            after = f" after epoch {event.epoch}" if event.epoch else ""
            return f"{place}{after}: compiling {plan.kernel} for {_members(event)}"
        case "epoch":
            left = _left(event)
            return (
                f"{place}, epoch {event.epoch} of {event.num_epochs}:"
                f" loss {_median(event):.4g}{left and f', {left} left'}"
            )
        case _:
            fvu = [scores["fvu"] for scores in event.scores or ()]
            return f"{place}: fvu {min(fvu):.2%} to {max(fvu):.2%} of {_members(event)}"


def _show(bar: tqdm, event: Event) -> None:
    if event.kind == "compiling":
        bar.set_description(_members(event))
        # Those that a checkpoint holds.
        bar.update(event.epoch * len(event.configs))
    if event.kind == "epoch":
        bar.set_postfix(loss=f"{_median(event):.4g}", left=_left(event), refresh=False)
        bar.update(len(event.configs))


def _members(event: Event) -> str:
    return f"{len(event.configs)} SAEs of d_sae <= {event.plan.width}"


def _median(event: Event) -> float:
    return float(np.median(event.losses if event.losses is not None else np.nan))


def _left(event: Event) -> str:
    if event.seconds_left is None:
        return ""
    return str(datetime.timedelta(seconds=round(event.seconds_left)))
