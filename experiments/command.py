"""How every script of this folder starts: flags, errors and exit status."""

import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from absl import app, flags

import sae_jax
from sae_jax.sweep.backends import prepare_backends


def start(
    work: Callable[[], None], around: Callable[[], AbstractContextManager] = nullcontext
) -> None:
    """Parses the flags and does the work. An error in the input is printed as one line.

    The exit status is 1 after a ValueError, and 143, which stands for SIGTERM, if training was
    stopped and can be resumed.

    Args:
      work: what the script does.
      around: gives a context that the work, and what is said of its errors, is done in.
    """

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unknown arguments: {argv[1:]}")
        prepare_backends()
        with around():
            try:
                work()
            except ValueError as error:
                sys.exit(f"error: {error}")
            except sae_jax.Preempted as notice:
                print(f"{notice}; --resume continues", file=sys.stderr)
                sys.exit(128 + signal.SIGTERM)

    app.run(main)


def numbers(flag: flags.FlagHolder, kind: type = int) -> list:
    """The numbers of a comma-separated flag.

    Raises:
      ValueError: if a word is not a number of this kind.
    """
    try:
        return [kind(word) for word in flag.value]
    except ValueError as error:
        raise ValueError(
            f"--{flag.name}={','.join(flag.value)}; allowed are {kind.__name__}s, comma-separated"
        ) from error


_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "": 1}


def num_bytes(flag: flags.FlagHolder) -> int | None:
    """The bytes of a flag such as 6GiB, 500MiB or 1000000; `None` where it is not given.

    Raises:
      ValueError: if it is none of these.
    """
    if flag.value is None:
        return None
    unit = next(unit for unit in _UNITS if flag.value.endswith(unit))
    try:
        return int(float(flag.value.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"--{flag.name}={flag.value}; allowed are bytes, such as 6GiB, 500MiB or 1000000"
        ) from error
