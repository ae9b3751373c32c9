"""Flags that name the fields of `SAEConfig`, for scripts that train any sweep.

Each takes one value or several, comma-separated: the sweep has every combination.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

from absl import flags

import sae_jax
from sae_jax.configs import CHOICES

# What data and seeds a member has is said in other ways.
_OTHERS = ("layer", "position", "seed", "data_seed")
_FIELDS = {
    field.name: field
    for field in dataclasses.fields(sae_jax.SAEConfig)
    if field.name not in _OTHERS
}
_TYPES = typing.get_type_hints(sae_jax.SAEConfig)


def define() -> None:
    """Defines a flag for each field."""
    for name, field in _FIELDS.items():
        required = field.default is dataclasses.MISSING
        default = None if required else [_written(field.default)]
        allowed = ", ".join(map(str, CHOICES.get(name, ())))
        flags.DEFINE_list(
            name,
            default,
            f"As SAEConfig.{name}; several are comma-separated."
            + (" Shares are joined by colons, as 0.25:0.5:1." if name == "prefix_fractions" else "")
            + (f" Allowed: {allowed}." if allowed else ""),
            required=required,
        )


def grid(**others: Any) -> list[sae_jax.SAEConfig]:
    """Every combination of the flags' values and of other fields', as `sae_jax.grid`.

    Raises:
      ValueError: if a word is not of its field's type, or a combination is not allowed.
    """
    values = {name: [_read(name, word) for word in flags.FLAGS[name].value] for name in _FIELDS}
    return sae_jax.grid(**values, **others)


def _written(value: Any) -> str:
    return "None" if value is None else str(value)


def _read(name: str, word: str) -> Any:
    field = _FIELDS[name]
    options = typing.get_args(_TYPES[name]) or (_TYPES[name],)
    if word == "None" and type(None) in options or word in CHOICES.get(name, ()):
        return None if word == "None" else word
    readers: dict[Any, Callable[[str], Any]] = {int: int, float: float, bool: _boolean, str: str}
    kind = tuple if name == "prefix_fractions" else options[0]
    try:
        if kind is tuple:
            return tuple(float(share) for share in word.split(":"))
        return readers.get(kind, str)(word)  # What is no choice is refused by name by SAEConfig.
    except ValueError as error:
        kinds = getattr(kind, "__name__", str(kind))
        raise ValueError(f"--{field.name}={word}; allowed are {kinds}s") from error


def _boolean(word: str) -> bool:
    if word not in ("True", "true", "False", "false"):
        raise ValueError(word)
    return word in ("True", "true")
