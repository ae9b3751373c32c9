"""Which windows of a live store were trained on, so that their shards may go.

The side that trains writes it before it removes shards, and the side that extracts reads it.
"""

import json
from pathlib import Path

from sae_jax.activations.durable import write_text

RELEASED_NAME = "released.json"
# Windows that a live store has room for: one is trained on while the next is extracted. Shards of
# the first one stay besides.
MAX_WINDOWS = 2


def read_released(root: Path) -> int:
    """Number of windows of the store at `root` that are released, from the first on.

    Raises:
      ValueError: if the file that says so is damaged.
    """
    file = root / RELEASED_NAME
    try:
        num_windows = json.loads(file.read_text(encoding="utf-8"))["num_windows"]
    except FileNotFoundError:
        return 0
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error!r}") from error
    if type(num_windows) is not int or num_windows < 0:
        raise ValueError(f"{file} says {num_windows!r} windows; expected an integer from 0")
    return num_windows


def write_released(root: Path, num_windows: int) -> None:
    """Says that so many windows of the store at `root` are released."""
    write_text(root / RELEASED_NAME, json.dumps({"num_windows": num_windows}))
