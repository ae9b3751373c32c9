"""Cuts samples into batches of one size, for evaluation."""

import numpy as np


def padded_batches(x: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts samples into batches of one size, in order.

    Args:
      x: samples `[n, D]`.
      batch_size: number b of samples in a batch.

    Returns:
      Batches `[num_batches, b, D]`, the last of which zeros fill up, and a mask, bool
      `[num_batches, b]`, which is true where a row is a sample.
    """
    num_batches = -(-len(x) // batch_size)
    padding = num_batches * batch_size - len(x)
    mask = np.arange(num_batches * batch_size) < len(x)
    x = np.pad(x, ((0, padding), (0, 0)))
    return x.reshape(num_batches, batch_size, -1), mask.reshape(num_batches, batch_size)
