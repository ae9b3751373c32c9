"""Locks that keep two processes from writing to one place.

A lock is a file that its holder has locked with `flock`, so it ends with the process, however
that ends; a file left behind by a killed process locks nothing.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = ".lock"


@contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
    """Holds a folder, which it makes if absent, by a file in it until the block ends.

    Raises:
      ValueError: if the folder is a file, or another process holds it.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or nothing there")
    with _held(folder / LOCK_NAME, folder):
        yield


def is_locked(folder: str | os.PathLike) -> bool:
    """Whether a process holds a folder by `lock`."""
    try:
        with (Path(folder) / LOCK_NAME).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextmanager
def lock_beside(path: str | os.PathLike) -> Iterator[None]:
    """Holds a path by a file `.NAME.lock` beside it until the block ends.

    Unlike with `lock`, what is at the path may come, be removed or be replaced meanwhile.

    Raises:
      ValueError: if another process holds it.
    """
    path = Path(path).resolve()
    with _held(path.with_name(f".{path.name}.lock"), path):
        yield


@contextmanager
def _held(file: Path, what: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    is_held = False
    num_tries = 3
    while not is_held:
        with file.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                num_tries -= 1
                if num_tries:
                    time.sleep(0.01)  # Who asks `is_locked` holds the file for an instant.
                    continue
                raise ValueError(f"another process is writing to {what}") from error
            # The holder before may have removed the file between our opening and locking it.
            is_held = _is_at(stream.fileno(), file)
            if is_held:
                try:
                    yield
                finally:
                    # The file goes before the lock is given up, since afterwards it may be the
                    # next holder's, and stays if the folder was removed, since the one that is
                    # there now may be another's.
                    if _is_at(stream.fileno(), file):
                        file.unlink()


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
