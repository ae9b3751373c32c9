"""Reads one field of a config that someone else wrote, and checks its type.

Every function returns the field's value, or raises a `ValueError` that names the file,
the field, what was found and what is allowed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T", str, int)


def integer(config: Mapping[str, Any], name: str, path: Path, *, minimum: int) -> int:
    """Returns an integer that is at least `minimum`."""
    value = _present(config, name, path)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise refused(name, value, f"an integer from {minimum}", path)
    return value


def integers(config: Mapping[str, Any], name: str, path: Path, *, minimum: int) -> list[int]:
    """Returns a list of integers that are at least `minimum`."""
    values = _present(config, name, path)
    if not isinstance(values, list):
        raise refused(name, values, "a list of integers", path)
    return [integer({name: value}, name, path, minimum=minimum) for value in values]


def boolean(config: Mapping[str, Any], name: str, path: Path) -> bool:
    """Returns true or false."""
    value = _present(config, name, path)
    if not isinstance(value, bool):
        raise refused(name, value, "true or false", path)
    return value


def choice(config: Mapping[str, Any], name: str, allowed: Sequence[_T], path: Path) -> _T:
    """Returns one of a few strings or integers."""
    value = _present(config, name, path)
    for option in allowed:
        if type(value) is type(option) and value == option:
            return option
    raise refused(name, value, f"one of {list(allowed)}", path)


def mapping(config: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Returns a mapping whose keys are strings."""
    value = _present(config, name, path)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise refused(name, value, "a mapping", path)
    return value


def equal(config: Mapping[str, Any], name: str, expected: int, path: Path) -> None:
    """Checks an integer that the weights determine already."""
    if integer(config, name, path, minimum=1) != expected:
        raise refused(name, config[name], f"{expected}, which the weights have", path)


def refused(name: str, value: object, allowed: str, path: Path) -> ValueError:
    """Returns the error that tells of a value that is not allowed."""
    found = repr(value)
    shown = found if len(found) <= 80 else found[:80] + "..."
    return ValueError(f"{name} in {path} is {shown}; allowed is {allowed}")


def _present(config: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in config:
        raise ValueError(f"{path} has no field {name!r}; it has {sorted(map(str, config))}")
    return config[name]
