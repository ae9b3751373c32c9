"""Samples cut into batches of one size, for evaluation."""

import numpy as np


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
