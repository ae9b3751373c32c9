"""When latents fire: rates, ranking and top samples."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy import sparse

NUM_TOP_SAMPLES = 100


@dataclass(frozen=True, eq=False)
class Firing:
    """The latents of n samples, kept by column, as few of them are not zero.

    Attributes:
      z: latents, `[n, F]`, without stored zeros.
    """

    z: sparse.csc_array

    @classmethod
    def of(cls, z: np.ndarray | sparse.sparray) -> Self:
        """Takes latents `[n, F]`, dense or sparse.

        Raises:
          ValueError: if `z` is not a matrix.
        """
        if z.ndim != 2:
            raise ValueError(f"latents must be a matrix [n, F], found shape {z.shape}")
        columns = sparse.csc_array(z)
        columns.eliminate_zeros()
        columns.sort_indices()
        return cls(columns)

    @property
    def num_samples(self) -> int:
        """Number of samples n."""
        return self.z.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents F."""
        return self.z.shape[1]

    @cached_property
    def num_fired(self) -> np.ndarray:
        """Samples on which each latent fires (is not zero), int `[F]`."""
        return np.diff(self.z.indptr)

    @property
    def firing_rate(self) -> np.ndarray:
        """Share of samples on which each latent fires, `[F]`."""
        return self.num_fired / self.num_samples

    @property
    def alive(self) -> np.ndarray:
        """Latents that fire at least once, bool `[F]`."""
        return self.num_fired > 0

    @property
    def mean_magnitude(self) -> np.ndarray:
        """Mean of |z| over all samples, silent ones included, `[F]`."""
        return np.asarray(abs(self.z).astype(np.float64).sum(axis=0)) / self.num_samples

    @cached_property
    def ranking(self) -> np.ndarray:
        """Latents by firing rate, descending, ties by index, `[F]`; entry 0 has rank 1."""
        return np.argsort(-self.num_fired, kind="stable")

    @property
    def fires(self) -> sparse.csc_array:
        """Which latent fires on which sample, bool `[n, F]`."""
        return self.z.astype(bool)

    def top_samples(self, latent: int, limit: int = NUM_TOP_SAMPLES) -> np.ndarray:
        """Samples on which a latent fires, largest |z| first, ties by index; at most `limit`."""
        entries = slice(self.z.indptr[latent], self.z.indptr[latent + 1])
        order = np.argsort(-np.abs(self.z.data[entries]), kind="stable")
        return self.z.indices[entries][order[:limit]]

    def top_sample_matrix(self, limit: int = NUM_TOP_SAMPLES) -> sparse.csc_array:
        """Whether a sample is a top sample of a latent, bool `[n, F]`."""
        rows = [np.sort(self.top_samples(latent, limit)) for latent in range(self.d_sae)]
        indices = np.concatenate([np.empty(0, np.int64), *rows])
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return sparse.csc_array((np.ones(len(indices), bool), indices, indptr), self.z.shape)
