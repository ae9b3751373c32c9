"""When latents fire: rates, ranking and top samples."""

from functools import cached_property

import numpy as np
from scipy import sparse

NUM_TOP_SAMPLES = 100


class Firing:
    """The latents of n samples. They are kept by column, as few of them are not zero.

    Attributes:
      z: latents without stored zeros, `[n, F]`.
      fires: whether each latent fires (is not zero) on each sample, bool `[n, F]`.
      num_fired: number of samples on which each latent fires, int `[F]`.
      firing_rate: share of samples on which each latent fires, `[F]`.
      alive: whether each latent fires at least once, bool `[F]`.
      mean_magnitude: mean of |z| over all samples, silent ones included, `[F]`.
      ranking: indices of the latents from the highest firing rate down, ties by index, `[F]`;
        entry 0 has rank 1.
    """

    def __init__(self, z: np.ndarray | sparse.sparray):
        """Takes latents `[n, F]`, dense or sparse.

        Raises:
          ValueError: if `z` is not a matrix.
        """
        if z.ndim != 2:
            raise ValueError(f"latents must be a matrix [n, F], found shape {z.shape}")
        self.z = sparse.csc_array(z)
        self.z.eliminate_zeros()
        self.z.sort_indices()
        self.fires = self.z.astype(bool)
        self.num_fired = np.diff(self.z.indptr)
        self.firing_rate = self.num_fired / z.shape[0]
        self.alive = self.num_fired > 0
        self.mean_magnitude = abs(self.z).astype(np.float64).sum(axis=0) / z.shape[0]
        self.ranking = np.argsort(-self.num_fired, kind="stable")

    def top_samples(self, latent: int) -> np.ndarray:
        """The at most 100 samples on which a latent fires with the largest |z|, ties by index."""
        entries = slice(self.z.indptr[latent], self.z.indptr[latent + 1])
        order = np.argsort(-np.abs(self.z.data[entries]), kind="stable")
        return self.z.indices[entries][order[:NUM_TOP_SAMPLES]]

    @cached_property
    def top_sample_matrix(self) -> sparse.csc_array:
        """Whether a sample is a top sample of a latent, bool `[n, F]`."""
        rows = [self.top_samples(latent) for latent in range(self.z.shape[1])]
        columns = np.repeat(np.arange(len(rows)), [len(samples) for samples in rows])
        marks = np.ones(len(columns), bool)
        return sparse.csc_array((marks, (np.concatenate(rows), columns)), self.z.shape)
