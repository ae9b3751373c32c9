"""A store's manifest: what every key must be, and the size and checksum of every file."""

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
        _check_keys(manifest)
    except ValueError as error:
        raise ValueError(f"{file} has {error}") from error
    return manifest


def shard_file(index: int) -> str:
    """Path of a shard, relative to the store's folder."""
    return f"{SHARDS_NAME}/{index:05d}.npy"


def manifest_files(manifest: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every file of a finished store, relative to its folder, with its entry."""
    yield PROBLEMS_NAME, manifest["problems"]
    for index, shard in enumerate(manifest["shards"]):
        yield shard_file(index), shard


def file_entry(file: Path) -> dict[str, Any]:
    """Size and checksum of a file, as a manifest lists them."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def check_size(file: Path, entry: dict[str, Any]) -> None:
    """Raises ValueError if a file is missing or of another size than its entry says."""
    size = file.stat().st_size if file.is_file() else None
    if size != entry["bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ValueError(f"{file} {found}; the manifest says {entry['bytes']} bytes")


def check_sha256(file: Path, entry: dict[str, Any]) -> None:
    """Raises ValueError if a file's checksum is not the one that its entry says."""
    found = file_entry(file)["sha256"]
    if found != entry["sha256"]:
        raise ValueError(f"{file} has sha256 {found}; the manifest says {entry['sha256']}")


_Kind = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words and as a test."""


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(*tests: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: (
        isinstance(values, list) and all(any(test(v) for test in tests) for v in values)
    )


_INTEGER: _Kind = ("an integer", _is_integer)
_STRING: _Kind = ("a string", _is_string)
_OBJECT: _Kind = ("an object", lambda value: isinstance(value, dict))
_INTEGERS: _Kind = ("a list of integers", _is_list_of(_is_integer))
_FILE_KEYS = {"bytes": _INTEGER, "sha256": _STRING}
_SHARD_KEYS: dict[str, _Kind] = {
    "shape": ("a list of 4 integers", lambda v: _is_list_of(_is_integer)(v) and len(v) == 4),
    "rows_per_problem": (
        "a list of integers or null",
        lambda value: value is None or _is_list_of(_is_integer)(value),
    ),
}
_KEYS: dict[str, _Kind] = {
    "finished": ("true or false", lambda value: isinstance(value, bool)),
    "model": _STRING,
    "layers": _INTEGERS,
    "positions": (
        "a list of integers and strings",
        _is_list_of(_is_integer, _is_string),
    ),
    "dtype": (" or ".join(STORAGE_DTYPES), lambda value: value in STORAGE_DTYPES),
    "d_in": _INTEGER,
    "num_problems": _INTEGER,
    "shard_size": _INTEGER,
    "settings": _OBJECT,
    "problems": _OBJECT,
    "shards": ("a list", lambda value: isinstance(value, list)),
}


def _check_keys(manifest: dict[str, Any]) -> None:
    _check_record(manifest, _KEYS)
    _check_record(manifest["problems"], _FILE_KEYS, "problems.")
    # Shards have no checksum before they are all there.
    shard_keys = _SHARD_KEYS | (_FILE_KEYS if manifest["finished"] else {})
    for index, shard in enumerate(manifest["shards"]):
        name = f"shards[{index}]"
        _check(shard, name, _OBJECT)
        _check_record(shard, shard_keys, f"{name}.")
        num_layers, num_positions, num_rows, d_in = shard["shape"]
        expected = len(manifest["layers"]), len(manifest["positions"]), manifest["d_in"]
        if (num_layers, num_positions, d_in) != expected:
            raise ValueError(
                f"{name} of shape {shard['shape']}; "
                f"expected [{expected[0]}, {expected[1]}, rows, {expected[2]}]"
            )
        counts = shard["rows_per_problem"]
        if counts is not None and sum(counts) != num_rows:
            raise ValueError(
                f"{sum(counts)} rows of problems in {name}; expected its shape's {num_rows} rows"
            )


def _check_record(record: dict[str, Any], kinds: Mapping[str, _Kind], prefix: str = "") -> None:
    for key, kind in kinds.items():
        if key not in record:
            raise ValueError(f"no {prefix}{key}; expected {kind[0]}")
        _check(record[key], f"{prefix}{key}", kind)


def _check(value: Any, name: str, kind: _Kind) -> None:
    words, test = kind
    if not test(value):
        raise ValueError(f"{value!r} as {name}; expected {words}")
