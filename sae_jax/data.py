"""From what a user passes as data to arrays on the device and batches of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.store import Position, Selection

DataSlice = tuple[int | None, Position | None]
"""(layer, position), or (None, None) for an array that says neither."""

ActivationData = (
    np.ndarray | jax.Array | Selection | Sequence[Selection] | Mapping[DataSlice, np.ndarray]
)


def slices_of(data: ActivationData, name: str) -> dict[DataSlice, np.ndarray]:
    """The arrays in `data` by the (layer, position) that they come from.

    Args:
      data: one float array `[n, D]`; one selection of a store; several of them; or a
        mapping from (layer, position) to arrays.
      name: what to call `data` in errors.

    Returns:
      float32 arrays `[n, D]`, all of one D.

    Raises:
      ValueError: if there is no slice, or the same one twice, or an array is not 2-D, not
        floating, empty, not finite, or of another width than the rest.
    """
    slices: dict[DataSlice, np.ndarray] = {}
    for data_slice, array in _unchecked_slices(data):
        if not (isinstance(data_slice, tuple) and len(data_slice) == 2):
            raise ValueError(f"{name} names a slice {data_slice!r}; expected (layer, position)")
        if data_slice in slices:
            raise ValueError(f"{name} holds{_of(data_slice).removeprefix(' of')} more than once")
        slices[data_slice] = _checked(array, f"{name}{_of(data_slice)}")
    if not slices:
        raise ValueError(f"{name} holds no activations")
    widths = {array.shape[1] for array in slices.values()}
    if len(widths) > 1:
        raise ValueError(f"{name} mixes activations of widths {sorted(widths)}; expected one width")
    return slices


def _unchecked_slices(data: ActivationData) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, Mapping):
        yield from data.items()
    elif isinstance(data, Selection):
        yield (data.layer, data.position), data.activations
    elif isinstance(data, Sequence) and all(isinstance(part, Selection) for part in data):
        yield from (((part.layer, part.position), part.activations) for part in data)
    else:
        yield (None, None), data


def _of(data_slice: DataSlice) -> str:
    layer, position = data_slice
    return "" if layer is None else f" of layer {layer}, position {position}"


def _checked(data: Any, name: str) -> np.ndarray:
    array = np.asarray(data)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; expected [n, d_in], neither of them 0")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}; expected a floating dtype")
    array = np.asarray(array, np.float32)
    bad_rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if bad_rows.size:
        raise ValueError(
            f"{name} is not finite in {bad_rows.size} of {len(array)} rows, the first of them"
            f" row {bad_rows[0]}; expected finite float32 values"
        )
    return array


def epoch_order(data_seed: jax.Array | int, epoch: jax.Array | int, num_samples: int) -> jax.Array:
    """The order, `[num_samples]`, in which an epoch visits the samples.

    It depends on nothing else, so that all members of a sweep see the same batches.
    """
    key = jax.random.fold_in(jax.random.key(data_seed), epoch)
    return jax.random.permutation(key, jnp.arange(num_samples, dtype=jnp.int32))


def padded_batches(x: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts samples into batches of one size, in order.

    Args:
      x: `[n, D]`.
      batch_size: b.

    Returns:
      Batches `[num_batches, b, D]`, the last filled up with zeros, and which rows are
      samples, bool `[num_batches, b]`.
    """
    num_batches = -(-len(x) // batch_size)
    padding = num_batches * batch_size - len(x)
    mask = np.arange(num_batches * batch_size) < len(x)
    x = np.concatenate([x, np.zeros((padding, x.shape[1]), x.dtype)])
    return x.reshape(num_batches, batch_size, -1), mask.reshape(num_batches, batch_size)
