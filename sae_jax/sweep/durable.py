"""Files that outlast a loss of power."""

import json
import os
from pathlib import Path
from typing import Any


def flush(path: Path) -> None:
    """Makes sure that a file, or a folder's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(content: Any, path: Path, unfinished: Path) -> None:
    """Writes a JSON file, which replaces what is at `path` only once it is whole.

    Args:
      content: JSON values.
      path: the file.
      unfinished: where in the same folder it is while it is written.
    """
    unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    flush(unfinished)
    unfinished.replace(path)
