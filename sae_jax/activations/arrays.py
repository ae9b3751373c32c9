"""Reads float arrays of other programs by their values, or refuses them by name."""

from typing import Any

import ml_dtypes
import numpy as np

_ALLOWED = "float16, bfloat16, float32 or float64"
_FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.longdouble)


def as_float32(array: Any, name: str) -> np.ndarray:
    """Converts an array of floats to float32, without a copy of one that is float32 already.

    NumPy's files have no name for bfloat16: such an array is saved, and read back, as elements
    of two bytes that mean nothing to NumPy (dtype `|V2`). No other float of two bytes is kept
    that way, so those are read as bfloat16.

    Args:
      array: float16, bfloat16, float32, float64 or wider, in any byte order, of any shape; of
        NumPy, JAX or PyTorch.
      name: name of the array in errors.

    Raises:
      ValueError: if the array holds anything else, has masked values, or has a finite value
        beyond float32.
    """
    if type(array).__module__.partition(".")[0] == "torch":
        dtype = str(array.dtype).removeprefix("torch.")
        if dtype not in ("float16", "bfloat16", "float32", "float64"):
            raise ValueError(f"{name} has dtype {dtype}; expected {_ALLOWED}")
        # NumPy takes no bfloat16 of PyTorch's.
        array = (array.float() if dtype == "bfloat16" else array).detach().cpu().numpy()
    if isinstance(array, np.ma.MaskedArray) and (num_masked := np.ma.count_masked(array)):
        raise ValueError(f"{name} has {num_masked} masked values; fill them or leave them out")
    array = np.asarray(array)
    if array.dtype == "V2":
        array = array.view(ml_dtypes.bfloat16)
    if array.dtype.type not in _FLOATS:
        hint = " (float8 types are saved so)" if array.dtype == "V1" else ""
        raise ValueError(f"{name} has dtype {array.dtype}{hint}; expected {_ALLOWED}")
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32, copy=False)
    if converted.dtype.itemsize < array.dtype.itemsize:
        too_large = np.isinf(converted) & np.isfinite(array)
        if too_large.any():
            raise ValueError(f"{name} has the value {array[too_large][0]}, which is beyond float32")
    return converted
