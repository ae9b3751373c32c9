"""Reads a store's manifest, and checks its keys and the size and checksum of every file."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
PROBLEMS_NAME = "problems.jsonl"
SHARDS_NAME = "shards"
STORAGE_DTYPES = ("float16", "float32")


def read_manifest(root: Path) -> dict[str, Any]:
    """Reads the manifest of the store at `root`, finished or not.

    Raises:
      ValueError: if there is none, or it is not one that this version reads; it names the key
        that is missing or wrong.
    """
    file = root / MANIFEST_NAME
    if not file.is_file():
        raise ValueError(f"no activation store at {root}: {file} does not exist")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{file} has schema_version {version!r}; this reads {SCHEMA_VERSION}")
    try:
        _check(manifest)
    except ValueError as error:
        raise ValueError(f"{file} has {error}") from error
    return manifest


def shard_file(index: int) -> str:
    """Returns the path of a shard, relative to the store's folder."""
    return f"{SHARDS_NAME}/{index:05d}.npy"


def manifest_files(manifest: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every file of a finished store, relative to its folder, with its entry."""
    yield PROBLEMS_NAME, manifest["problems"]
    for index, shard in enumerate(manifest["shards"]):
        yield shard_file(index), shard


def file_entry(file: Path) -> dict[str, Any]:
    """Returns the size and checksum of a file, as a manifest lists them."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def check_file(file: Path, entry: dict[str, Any], *, read: bool) -> None:
    """Compares a file's size with its entry and, if told to read the file, its checksum.

    Raises:
      ValueError: if the file is missing or differs.
    """
    size = file.stat().st_size if file.is_file() else None
    if size != entry["bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ValueError(f"{file} {found}; the manifest says {entry['bytes']} bytes")
    if read and (found := file_entry(file)["sha256"]) != entry["sha256"]:
        raise ValueError(f"{file} has sha256 {found}; the manifest says {entry['sha256']}")


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_list_of_integers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


# The kinds of values in words, each with a function that tells whether a value is of the kind.
_TESTS: dict[str, Callable[[Any], bool]] = {
    "true or false": lambda value: isinstance(value, bool),
    "an integer": _is_integer,
    "a string": lambda value: isinstance(value, str),
    "an object": lambda value: isinstance(value, dict),
    "a list": lambda value: isinstance(value, list),
    "a list of integers": _is_list_of_integers,
    "a list of 4 integers": lambda value: _is_list_of_integers(value) and len(value) == 4,
    "a list of integers or null": lambda value: value is None or _is_list_of_integers(value),
    "a list of integers and strings": lambda value: (
        isinstance(value, list) and all(type(item) in (int, str) for item in value)
    ),
    "float16 or float32": lambda value: value in STORAGE_DTYPES,
}
_FILE_KEYS = {"bytes": "an integer", "sha256": "a string"}
_SHARD_KEYS = {"shape": "a list of 4 integers", "rows_per_problem": "a list of integers or null"}
_KEYS = {
    "finished": "true or false",
    "model": "a string",
    "layers": "a list of integers",
    "positions": "a list of integers and strings",
    "dtype": "float16 or float32",
    "d_in": "an integer",
    "num_problems": "an integer",
    "shard_size": "an integer",
    "settings": "an object",
    "problems": "an object",
    "shards": "a list",
}


def _check(manifest: dict[str, Any]) -> None:
    # Live stores alone have a window.
    _check_keys(manifest, _KEYS | ({"window": "an integer"} if "window" in manifest else {}))
    _check_keys(manifest["problems"], _FILE_KEYS, "problems.")
    # Shards have no checksum before they are all there.
    shard_keys = _SHARD_KEYS | (_FILE_KEYS if manifest["finished"] else {})
    expected = [len(manifest["layers"]), len(manifest["positions"]), manifest["d_in"]]
    for index, shard in enumerate(manifest["shards"]):
        name = f"shards[{index}]"
        _check_keys({name: shard}, {name: "an object"})
        _check_keys(shard, shard_keys, f"{name}.")
        *axes, num_rows, d_in = shard["shape"]
        if [*axes, d_in] != expected:
            raise ValueError(
                f"{name} of shape {shard['shape']}; "
                f"expected [{expected[0]}, {expected[1]}, rows, {expected[2]}]"
            )
        counts = shard["rows_per_problem"]
        if counts is not None and sum(counts) != num_rows:
            raise ValueError(
                f"{sum(counts)} rows of problems in {name}; expected its shape's {num_rows} rows"
            )


def _check_keys(record: dict[str, Any], kinds: Mapping[str, str], prefix: str = "") -> None:
    for key, kind in kinds.items():
        if key not in record:
            raise ValueError(f"no {prefix}{key}; expected {kind}")
        if not _TESTS[kind](record[key]):
            raise ValueError(f"{record[key]!r} as {prefix}{key}; expected {kind}")
