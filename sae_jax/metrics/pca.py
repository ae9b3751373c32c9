"""Principal components: what the best plane of so many dimensions misses, a floor for `fvu`."""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA


def pca_fvu(train: np.ndarray, val: np.ndarray, ranks: Sequence[int]) -> dict[int, float]:
    """The `fvu` of validation samples projected on the first principal components of others.

    An SAE of which L0 latents fire reconstructs each sample in a plane of L0 dimensions that it
    chooses for the sample. One plane for all samples is what it has to beat.

    Args:
      train: samples whose mean and components are used, `[n, D]`.
      val: samples to reconstruct, `[m, D]`.
      ranks: numbers of components.

    Returns:
      The `fvu` by number of components.

    Raises:
      ValueError: if a rank is not from 1 to the smaller of n and D.
    """
    largest = min(train.shape)
    if outside := [rank for rank in ranks if not 1 <= rank <= largest]:
        raise ValueError(f"ranks {outside} are not within 1 to {largest}, the least of [n, D]")
    pca = PCA(max(ranks), svd_solver="full").fit(train.astype(np.float64))
    deviations = val.astype(np.float64) - pca.mean_
    inside = (deviations @ pca.components_.T) ** 2
    around_own_mean = np.sum((val - val.mean(axis=0, dtype=np.float64)) ** 2)
    total = np.sum(deviations**2)
    explained = np.cumsum(inside.sum(axis=0))
    return {rank: float((total - explained[rank - 1]) / around_own_mean) for rank in ranks}
