"""Files that outlast a loss of power, and appear only once they are whole."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp"
"""What the name of a file ends in while it is written."""


def flush(path: Path) -> None:
    """Makes sure that a file, or a folder's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, which replaces what is at `path` only once it is whole."""
    write_whole(path, lambda stream: stream.write(text.encode()))


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file by a function of a stream, and replaces what is at `path` only at the end.

    Raises:
      OSError: if it cannot be written, as when the disk is full; what was there is still there.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as stream:
            write(stream)
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)
