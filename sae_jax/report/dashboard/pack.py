"""Data of the page: compact JSON, compressed, as text that an HTML file can hold."""

import base64
import gzip
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

# Nobody reads more of a number off a page, and each digit is a megabyte at 16,384 latents.
NUM_DIGITS = 4


def packed(value: Any) -> str:
    """JSON of a value, by gzip, in base64: letters, digits, `+`, `/` and `=` alone.

    Raises:
      ValueError: if a number is not finite; `numbers` turns those into `None`.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")


def numbers(values: Iterable[Any], digits: int = NUM_DIGITS) -> list[Any]:
    """Values of one column: floats with few digits, `None` where they are not finite."""
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    return [_number(value, digits) for value in listed]


def _number(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        # 12.0 and 1e+10 are written as integers, which are shorter.
        short = float(f"{value:.{digits}g}") if math.isfinite(value) else None
        return int(short) if short is not None and short.is_integer() else short
    return value
