"""The memory that this process may take."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_V1_LIMIT = "memory.limit_in_bytes"
_V2_LIMIT = "memory.max"


def memory_limit(root: str | os.PathLike = "/") -> int:
    """Bytes of memory that this process may take: the machine's, or fewer in a container.

    A control group limits all processes in it together. The limits of the process's own group
    and of all groups that enclose it count, in version 1 and 2. A container often sees only its
    own group, as the root of the hierarchy, whatever path `/proc` gives for the process.

    Args:
      root: the folder that holds `proc` and `sys`.

    References:
      https://docs.kernel.org/admin-guide/cgroup-v2.html, "memory.max" and "/proc/PID/cgroup"
      https://docs.kernel.org/admin-guide/cgroup-v1/memory.html, "memory.limit_in_bytes"
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_group_limits(Path(root))])


def _group_limits(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # No Linux, or no control groups.
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            yield from _limits(mount, path, _V2_LIMIT)
        elif "memory" in controllers.split(","):
            yield from _limits(mount / "memory", path, _V1_LIMIT)


def _limits(mount: Path, path: str, name: str) -> Iterator[int]:
    """The limits of a group and of the groups that enclose it, as far as they are visible."""
    group = PurePosixPath(path.lstrip("/"))
    # A path with ".." leads to a group that is not visible here.
    inside = [] if ".." in group.parts else [group, *group.parents]
    for folder in {mount / part for part in inside} | {mount}:
        try:
            limit = (folder / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if limit.isdecimal():  # "max" means none; version 1 writes a number beyond all memory.
            yield int(limit)


def give_back_free_memory() -> None:
    """Returns to the system what C's library keeps of freed memory, where that is glibc.

    It keeps blocks of up to 32 MiB, which the arrays of a group may be many of, for others of their
    size. The next group has other sizes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
