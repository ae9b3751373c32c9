"""The processor's cores, each of which can be a device of its own.

A step of a member of usual size is many short operations, and dividing each among the cores gains
little. So on a CPU each core trains members of its own.
"""

import os
from contextlib import suppress

import jax

_FLAG_OF_XLA = "xla_force_host_platform_device_count"


def num_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_cores_devices() -> None:
    """Makes each core a device of JAX's CPU backend, if nobody has said how many there are.

    The number is fixed once JAX has computed something. There is one device then, and a sweep
    trains on that; results are the same but for rounding.
    """
    unset = jax.config.values["jax_num_cpu_devices"] < 0
    if unset and _FLAG_OF_XLA not in os.environ.get("XLA_FLAGS", ""):
        with suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", num_cores())
