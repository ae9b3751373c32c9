"""Flags by which a script is one of several processes that train one sweep, on one host or many."""

import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from absl import flags

from sae_jax.sweep import processes

# A process that is silent for so long is given up, and the job with it.
HEARTBEAT_SECONDS = 30
# Of an error that all processes run into, as a bad flag, all are told in this time.
LAST_WORDS_SECONDS = 10

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Train with all processes of the job that SLURM, Kubernetes or Open MPI has started.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, where processes are started by hand."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "With --coordinator: how many there are.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "With --coordinator: which this one is, from 0.", lower_bound=0
)

# Reads until the process that writes to it is gone, however that ended.
_WATCH = """trap '' INT TERM HUP; read -r line || echo "$0" >&2"""
_LOST = (
    "error: {} ended before the job was done, and the others end with it; what each wrote before"
    " says why. Start all again with --resume, on as many as there are now"
)


@contextmanager
def joined() -> Iterator[None]:
    """Does the block as one process of the job that the flags name; as the only one without them.

    All but process 0 are quiet. If a process dies each of the others ends within a minute and says
    what to do, even where JAX or the system ended it.
    """
    if not (_DISTRIBUTED.value or _COORDINATOR.value):
        yield
        return
    _join()
    name = f"process {jax.process_index()} of {jax.process_count()}"
    watch = ["sh", "-c", _WATCH, _LOST.format(name)]
    watcher = subprocess.Popen(watch, stdin=subprocess.PIPE, text=True)
    if not processes.is_main():
        warnings.simplefilter("ignore")
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    end = SystemExit(0)
    try:
        yield
    except processes.MainFailed:
        end = SystemExit(1)
    except SystemExit as known:
        end = known
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    # Process 0 may write for long after the others are done.
    if not end.code and processes.meet():
        watcher.communicate("done\n")
        return
    if end.code and "Gloo" not in str(end.code):  # Where another is gone JAX says so on CPUs.
        watcher.communicate("done\n")
        if processes.meet(LAST_WORDS_SECONDS):
            raise end
    # Some still train, or are gone: JAX would wait for them.
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    sys.stdout.flush()
    os._exit(end.code if isinstance(end.code, int) else 1)


def _join() -> None:
    """Joins the processes, before JAX looks for devices."""
    named = {"num_processes": _NUM_PROCESSES.value, "process_id": _PROCESS_ID.value}
    if _COORDINATOR.value and None in named.values():
        missing = ", ".join(f"--{name}" for name, value in named.items() if value is None)
        sys.exit(f"error: --coordinator={_COORDINATOR.value} without {missing}; expected all three")
    # `train_sweep` itself saves and ends on SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            _COORDINATOR.value, **named, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except ValueError as error:
        sys.exit(
            f"error: --distributed found no job ({error}); expected one of SLURM, Kubernetes or"
            " Open MPI, or --coordinator, --num_processes and --process_id"
        )
    except jax.errors.JaxRuntimeError as error:
        sys.exit(f"error: the processes of this job did not find each other: {error}")
