"""Checksums of files and of arrays.

A folder's `checksums.json` lists the size and sha256 of its files. They alone decide whether a
checkpoint is damaged: an error in reading files that are as they were written is a passing fault.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sae_jax.activations.manifest import file_entry
from sae_jax.activations.matrix import Matrix, blocks, live_of, measured

CHECKSUMS_NAME = "checksums.json"


class DamagedError(Exception):
    """A folder's files are not as they were written."""


def write_checksums(folder: Path) -> None:
    """Lists all files of a folder, which is complete but for the list."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {str(path.relative_to(folder)): file_entry(path) for path in files}
    (folder / CHECKSUMS_NAME).write_text(json.dumps(checksums, indent=1), encoding="utf-8")


def check_files(folder: Path) -> bool:
    """Compares a folder's files with their checksums.

    Returns:
      Whether there are checksums: versions before they were introduced wrote none.

    Raises:
      DamagedError: if a file is missing or differs from what was written.
      OSError: if a file cannot be read just now.
    """
    try:
        checksums = json.loads((folder / CHECKSUMS_NAME).read_bytes()).items()
    except FileNotFoundError:
        return False
    except (AttributeError, ValueError) as error:
        raise DamagedError(f"{CHECKSUMS_NAME} holds no checksums: {error}") from error
    for name, written in checksums:
        path = folder / name
        found = file_entry(path) if path.exists() else "missing"
        if found != written:
            raise DamagedError(f"{name} is {found}, was written as {written}")
    return True


def fingerprint(arrays: Any) -> str:
    """The sha256 of the shapes, dtypes and values of a pytree of arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def fingerprint_of_samples(x: Matrix) -> str:
    """The `fingerprint` of samples `[n, D]`, which are read block by block.

    Of live samples it covers the first window, and what decides the others.
    """
    live = live_of(x)
    digest = hashlib.sha256(f"{x.shape} float32{live.fingerprint if live else ''}".encode())
    for block in blocks(measured(x)):
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()
