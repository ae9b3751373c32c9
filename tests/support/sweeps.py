"""What tests of sweeps share: samples, the order of batches, and training without a bar."""

import numpy as np

from sae_jax import TrainConfig, train_sweep
from sae_jax.sweep.batches import epoch_order

D_IN = 12


def samples(n, d_in=D_IN, seed=0):
    """A sparse mixture of directions with an offset, which a TopK SAE can fit."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(3 * d_in, d_in))
    weights = rng.exponential(size=(n, 3 * d_in)) * (rng.random((n, 3 * d_in)) < 0.1)
    return (weights @ directions + rng.normal(size=d_in)).astype(np.float32)


def batches(n, batch_size, epochs, data_seed=0):
    """The rows of each step, the smaller last batch of an epoch kept."""
    for epoch in range(epochs):
        order = np.asarray(epoch_order(data_seed, epoch, n))
        yield from (order[start : start + batch_size] for start in range(0, n, batch_size))


def top_k(k):
    """Keeps the k largest magnitudes of each row of a float64 array."""

    def keep(pre):
        z = np.zeros_like(pre)
        kept = np.argsort(-np.abs(pre), axis=1, kind="stable")[:, :k]
        np.put_along_axis(z, kept, np.take_along_axis(pre, kept, 1), 1)
        return z

    return keep


def quietly(configs, train, val, **fields):
    return train_sweep(configs, train, val, TrainConfig(**fields), progress=False)
